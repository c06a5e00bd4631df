"""Draw the demo scenes, laid out like Cityscapes: ``mmseg-repvgg make-demo-scenes FOLDER``."""

import argparse

from mmseg_repvgg.datasets.demo_scenes import make_demo_scenes


def main() -> None:
    """Parse the options and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('root', help='folder to write to, the data_root of a CityscapesDataset')
    parser.add_argument('--num-train', type=int, default=200, help='training scenes (%(default)s)')
    parser.add_argument('--num-val', type=int, default=40, help='validation scenes (%(default)s)')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(512, 256),
        metavar=('WIDTH', 'HEIGHT'),
        help='size of the images in pixels (512 256)',
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=2, help='processes (%(default)s)')
    parser.add_argument(
        '--force', action='store_true', help='replace demo scenes made with other settings'
    )
    args = parser.parse_args()
    try:
        make_demo_scenes(**{**vars(args), 'size': tuple(args.size)})
    except (ValueError, OSError) as error:
        raise SystemExit(f'make_demo_scenes: {error}') from None
    print(f'{args.num_train} + {args.num_val} scenes in {args.root}')
