"""Estimate the memory of training a config: ``mmseg-repvgg estimate-memory CONFIG --batch 2``.

Nothing is computed, so it takes seconds and little memory at any size. docs/recipes.md lists what
is not included.
"""

import warnings

from mmseg_repvgg.analysis import memory
from mmseg_repvgg.command_line import config_parser, user_errors
from mmseg_repvgg.engine import launch


def main() -> None:
    """Parse the options and print the estimate."""
    parser = config_parser(__doc__)
    parser.add_argument('--batch', type=int, help="images per device; default: the config's")
    parser.add_argument(
        '--crop', type=int, nargs=2, metavar=('H', 'W'), help="pixels; default: the config's"
    )
    parser.add_argument(
        '--measure',
        action='store_true',
        help='also run the steps, and measure the peak of what PyTorch allocates',
    )
    args = parser.parse_args()
    with user_errors('estimate_memory'):
        cfg = launch.load_config(args.config, args.cfg_options)
        batch, size = memory.training_input(cfg, args.batch, args.crop)
        warnings.simplefilter('ignore')  # mmseg warns about settings of the config
        print(f'batch {batch}, crops of {size[0]}x{size[1]}, float32, per device')
        print(memory.estimate(cfg, batch, size))
        if args.measure:
            print(f'{"measured peak":20} {memory.measure(cfg, batch, size) / 2**20:9.0f} MiB')
