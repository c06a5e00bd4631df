"""Convert masks to label maps of ids: ``mmseg-repvgg convert-masks MASKS OUT --table FILE``.

FILE has a line ``R G B name`` for each colour, or ``value name`` for each value; ids follow the
order of the names, ``void`` is 255. ``--binary`` instead: white is 1, black 0. Without OUT, prints
the colours or values that MASKS have, as such a table. Prints the lines for configs/own_data.py.
"""

import argparse
from pathlib import Path

from mmseg_repvgg.command_line import user_errors
from mmseg_repvgg.datasets.convert_masks import Table, convert_masks, list_values


def main() -> None:
    """Parse the options, and convert or list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('masks', type=Path, help='folder of masks')
    parser.add_argument('out', type=Path, nargs='?', help='folder to write to')
    how = parser.add_mutually_exclusive_group()
    how.add_argument('--table', type=Path, help='file with the name of each colour or value')
    how.add_argument('--binary', action='store_true', help='two classes: black 0, white 1')
    parser.add_argument(
        '--threshold', type=int, default=128, help='grey value from which --binary gives 1 (128)'
    )
    parser.add_argument('--workers', type=int, default=1, help='processes (%(default)s)')
    args = parser.parse_args()
    if args.out is not None and not (args.table or args.binary):
        parser.error('OUT needs --table FILE or --binary')
    with user_errors('convert_masks'):
        if args.out is None:
            print(list_values(args.masks))
            return
        table = Table.read(args.table) if args.table else None
        count = convert_masks(args.masks, args.out, table, args.threshold, args.workers)
        print(f'# {count} label maps in {args.out}')
        if table is not None:
            print(table)
