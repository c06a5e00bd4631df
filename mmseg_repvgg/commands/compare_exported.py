"""Compare with PyTorch: ``mmseg-repvgg compare-exported CONFIG CHECKPOINT MODEL.onnx``.

Runs every test image, resized to the size of the models, through PyTorch and each MODEL, and prints
how many pixels get the same class, how far the logits are apart, and the time of a call.
"""

from mmengine.config import DictAction

from mmseg_repvgg.command_line import config_parser, user_errors
from mmseg_repvgg.deploy.compare_exported import compare_exported
from mmseg_repvgg.deploy.runtimes import RUNTIMES
from mmseg_repvgg.engine import launch


def main() -> None:
    """Parse the options, compare, and print a line per model."""
    parser = config_parser(__doc__, 'config of the checkpoint')
    parser.add_argument('checkpoint', help='what the models were exported from')
    parser.add_argument(
        'models', nargs='+', metavar='model', help='exported models, all of the same size'
    )
    parser.add_argument(
        '--runtime', choices=list(RUNTIMES), help='default: one that reads the file'
    )
    parser.add_argument(
        '--runtime-options',
        nargs='+',
        action=DictAction,
        default={},
        help='options of the runtime, key=value, such as winograd_level=1 for mnn',
    )
    parser.add_argument('--device', help="device of the runtime: 'cuda' (default: CPU)")
    parser.add_argument('--threads', type=int, help='threads of the runtime')
    parser.add_argument('--images', type=int, help='how many; default: all of the test set')
    args = parser.parse_args()
    if args.device is not None:
        args.runtime_options['device'] = args.device
    with user_errors('compare_exported'):
        found = compare_exported(
            launch.load_config(args.config, args.cfg_options),
            args.checkpoint,
            args.models,
            args.runtime,
            args.threads,
            args.images,
            **args.runtime_options,
        )
        for agreement in found:
            print(agreement)
