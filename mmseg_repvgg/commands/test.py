"""Evaluate a checkpoint: ``mmseg-repvgg test CONFIG CHECKPOINT``.

With ``--runtime`` evaluates an exported model: ``mmseg-repvgg test CONFIG MODEL.onnx --runtime
onnxruntime``.
"""

import os

from mmseg_repvgg.command_line import config_parser, user_errors
from mmseg_repvgg.deploy.evaluate import test_exported
from mmseg_repvgg.deploy.runtimes import RUNTIMES
from mmseg_repvgg.engine import launch


def main() -> None:
    """Parse the options that users of mmseg know, and evaluate."""
    parser = config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file, or exported model')
    parser.add_argument('--runtime', choices=list(RUNTIMES), help='runtime of the exported model')
    parser.add_argument('--device', help="device of the runtime: 'cuda' (default: CPU)")
    parser.add_argument('--work-dir', help='folder for logs and metrics')
    parser.add_argument('--out', help='folder for the predicted label maps')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a window stays open')
    parser.add_argument('--launcher', choices=launch.LAUNCHERS, default='none')
    parser.add_argument(
        '--verbose', action='store_true', help="show mmengine's whole log, not only in the log file"
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    # torch.distributed.launch passes it; torchrun sets the environment variable
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    if args.device and not args.runtime:
        parser.error('--device needs --runtime; a checkpoint runs on the GPU if there is one')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    options = dict(
        work_dir=args.work_dir,
        out=args.out,
        show=args.show,
        show_dir=args.show_dir,
        wait_time=args.wait_time,
        tta=args.tta,
        launcher=args.launcher,
        verbose=args.verbose,
    )
    with user_errors('test'):
        cfg = launch.load_config(args.config, args.cfg_options)
        if args.runtime:
            test_exported(cfg, args.checkpoint, args.runtime, args.device or 'cpu', **options)
        else:
            launch.test(cfg, args.checkpoint, **options)
