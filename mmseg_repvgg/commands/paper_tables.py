"""Print the paper's Tables 2 to 5 from the built models: ``mmseg-repvgg paper-tables``."""

import argparse

from mmseg_repvgg.analysis.paper_tables import table_2_and_3, table_4_and_5


def main() -> None:
    """Print both pairs of tables as Markdown."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(table_2_and_3(), flush=True)
    print(f'\n{table_4_and_5()}\n')
