"""Train, fuse and evaluate on built-in data: ``mmseg-repvgg demo``."""

import argparse
from pathlib import Path

from mmseg_repvgg.demo import WORK_DIR, run_demo


def main() -> None:
    """Parse the options and run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=WORK_DIR)
    parser.add_argument('--cfg-options', nargs='+', default=[], help='key=value, for all commands')
    args = parser.parse_args()
    run_demo(args.work_dir, args.cfg_options)
