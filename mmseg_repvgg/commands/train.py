"""Train a model on a config: ``mmseg-repvgg train configs/pspnet_repvgg_b2.py``."""

import os

from mmseg_repvgg.command_line import config_parser, user_errors
from mmseg_repvgg.engine import launch


def main() -> None:
    """Parse the options that users of mmseg know, and train."""
    parser = config_parser(__doc__)
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--resume',
        nargs='?',
        const=True,
        default=False,
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or from the last one in the work folder',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision: float16 on a GPU, bfloat16 on the CPU',
    )
    parser.add_argument(
        '--verbose', action='store_true', help="show mmengine's whole log, not only in the log file"
    )
    parser.add_argument(
        '--tensorboard', action='store_true', help='also log for TensorBoard, in the work folder'
    )
    parser.add_argument('--launcher', choices=launch.LAUNCHERS, default='none')
    # torch.distributed.launch passes it; torchrun sets the environment variable
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    with user_errors('train'):
        launch.train(
            launch.load_config(args.config, args.cfg_options),
            args.work_dir,
            args.resume,
            args.amp,
            args.launcher,
            args.verbose,
            args.tensorboard,
        )
