"""Check the data of a config: ``mmseg-repvgg check-data configs/own_data.py``.

Prints for each data set the images, their sizes, the share of every class, and what is wrong.
Writes a bar chart and overlays of the labels to OUT. Exit code 1 means that something is wrong.
"""

import warnings
from pathlib import Path

from mmseg_repvgg.command_line import config_parser, user_errors
from mmseg_repvgg.datasets.check_data import check_data
from mmseg_repvgg.engine import launch


def main() -> None:
    """Parse the options and check."""
    parser = config_parser(__doc__)
    parser.add_argument(
        '--out', type=Path, help='folder for the pictures (default: work_dirs/CONFIG/data)'
    )
    parser.add_argument(
        '--images', type=int, help='how many images of each data set are read (default: all)'
    )
    args = parser.parse_args()
    with user_errors('check_data'):
        out = args.out or Path('work_dirs') / Path(args.config).stem / 'data'
        warnings.simplefilter('ignore')  # mmseg warns about settings of the config
        cfg = launch.load_config(args.config, args.cfg_options)
        reports = check_data(cfg, out, args.images)
    raise SystemExit(1 if any(report.problems for report in reports) else 0)
