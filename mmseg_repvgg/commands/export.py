"""Export a checkpoint: ``mmseg-repvgg export CONFIG CHECKPOINT OUT.onnx --size 512 1024``.

Takes a training or a fused checkpoint, with its config. Writes OUT and its description OUT.json.
Exit code 0 means that the file was run in every installed runtime that reads it and agreed with
PyTorch; otherwise nothing is written.
"""

from mmseg_repvgg.command_line import config_parser, user_errors
from mmseg_repvgg.deploy.export import EXPORTED, Options, export
from mmseg_repvgg.deploy.model_description import FORMATS
from mmseg_repvgg.engine import launch


def main() -> None:
    """Parse the options, export, and print the report."""
    parser = config_parser(__doc__, 'config of the checkpoint')
    parser.add_argument('checkpoint', help='training or fused checkpoint')
    parser.add_argument('out', help='file to write: ' + ', '.join(FORMATS.values()))
    parser.add_argument(
        '--format',
        '--runtime',
        dest='model_format',
        choices=list(FORMATS),
        help='default: by the ending of OUT (--runtime is the old name of this option)',
    )
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help="size of the images; default: that of the config's sliding windows",
    )
    parser.add_argument('--dynamic-batch', action='store_true', help='take any number of images')
    parser.add_argument(
        '--preprocessing', action='store_true', help='take BGR pixels and normalise inside'
    )
    parser.add_argument('--argmax', action='store_true', help='return class indices, not logits')
    parser.add_argument('--rewrites', nargs='+', choices=EXPORTED, help='default: all that apply')
    parser.add_argument(
        '--no-tensorrt', action='store_true', help='allow ONNX operators TensorRT lacks'
    )
    parser.add_argument(
        '--leave-out',
        nargs='+',
        metavar='TRANSFORM',
        default=(),
        help='transforms of the test pipeline that users of the exported model do themselves',
    )
    parser.add_argument('--tolerance', type=float, help='largest relative difference of logits')
    parser.add_argument('--agreement', type=float, help='smallest share of pixels of equal class')
    args = parser.parse_args()
    options = Options(
        size=args.size and tuple(args.size),
        dynamic_batch=args.dynamic_batch,
        preprocessing=args.preprocessing,
        argmax=args.argmax,
        rewrites=args.rewrites and tuple(args.rewrites),
        leave_out=tuple(args.leave_out),
        tensorrt=not args.no_tensorrt,
        tolerance=args.tolerance,
        agreement=args.agreement,
    )
    with user_errors('export'):
        cfg = launch.load_config(args.config, args.cfg_options)
        print(export(cfg, args.checkpoint, args.out, args.model_format, options))
