"""Fuse a training checkpoint: ``mmseg-repvgg fuse CONFIG CHECKPOINT OUT.pth``.

Writes OUT.pth and the config that loads it, OUT.py. Exit code 0 means that both models gave
equal outputs; otherwise nothing is written.
"""

from mmseg_repvgg.command_line import config_parser, user_errors
from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.engine import launch
from mmseg_repvgg.reparam import REWRITES


def main() -> None:
    """Parse the options, fuse, and print the report."""
    parser = config_parser(__doc__, 'training config')
    parser.add_argument('checkpoint', help='training checkpoint')
    parser.add_argument('out', help='fused checkpoint to write')
    parser.add_argument(
        '--rewrites', nargs='+', choices=list(REWRITES), help='default: those for the device'
    )
    parser.add_argument('--tolerance', type=float, help='largest relative difference')
    parser.add_argument('--images', type=int, default=2, help='test images to compare on')
    parser.add_argument(
        '--device',
        default='cpu',
        help="device the fused model is for and is compared on: 'cuda', 'mps' (%(default)s)",
    )
    args = parser.parse_args()
    with user_errors('deploy_fuse'):
        report = fuse_checkpoint(
            launch.load_config(args.config, args.cfg_options),
            args.checkpoint,
            args.out,
            args.rewrites,
            args.tolerance,
            args.images,
            args.device,
        )
        print(report)
