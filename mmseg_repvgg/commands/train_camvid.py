"""Train all networks of configs/camvid on equal terms: ``mmseg-repvgg train-camvid``.

One at a time, each by a command of its own; run again, it goes on where it stopped. Writes
OUT/NAME_seedN.json for each, and OUT/camvid_trainings.md and pictures for all that are there.
Recipes, other ways to train the first network, are trained if they are named.
"""

import argparse
import sys
from pathlib import Path

from mmseg_repvgg.benchmark.camvid import TRAINED
from mmseg_repvgg.benchmark.camvid_page import write_page
from mmseg_repvgg.benchmark.camvid_trainings import train_all
from mmseg_repvgg.benchmark.record import Record
from mmseg_repvgg.command_line import user_errors


def main() -> None:
    """Parse the options, train, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'out', type=Path, nargs='?', default=Path('benchmarks/camvid'), help='folder (%(default)s)'
    )
    parser.add_argument('--only', nargs='+', metavar='NAME', help='; '.join(TRAINED))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='a training for each (0)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='settings of all',
    )
    parser.add_argument(
        '--speeds', type=Path, metavar='JSON', help='record of mmseg-repvgg benchmark camvid'
    )
    parser.add_argument('--table', action='store_true', help='do not train, only write the table')
    args = parser.parse_args()
    with user_errors('train_camvid'):
        speeds = Record.read(args.speeds) if args.speeds else None
        failures = []
        if not args.table:
            failures = train_all(args.out, args.only, args.seeds, args.cfg_options)
        print(write_page(args.out, speeds))
    if failures:
        sys.exit('train_camvid: error: ' + '; '.join(failures))
