"""Make Cityscapes' train-id label images: ``mmseg-repvgg prepare-cityscapes data/cityscapes``.

Exits with 0 if all images of train and val have a label image, and with 1 otherwise.
"""

import argparse

from mmseg_repvgg.datasets.cityscapes import SPLITS, prepare_cityscapes


def main() -> None:
    """Parse the options and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('root', help='folder that holds leftImg8bit and gtFine')
    parser.add_argument('--workers', type=int, help='processes (one per CPU, at most 8)')
    parser.add_argument('--force', action='store_true', help='make existing label images again')
    parser.add_argument('--splits', nargs='+', choices=SPLITS, default=SPLITS)
    args = parser.parse_args()
    try:
        report = prepare_cityscapes(args.root, args.workers, args.force, args.splits)
    except (ValueError, OSError) as error:
        raise SystemExit(f'prepare_cityscapes: {error}') from None
    print(report.summary())
    raise SystemExit(0 if report.complete else 1)
