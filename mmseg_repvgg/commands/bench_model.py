"""Time an exported model: ``mmseg-repvgg bench-model b2.onnx --threads 2 --callers 4``.

Prints the latency of a call (median and 95th percentile), from an image in memory to its label map,
and the images a second of all callers together.
"""

import argparse
import json

from mmseg_repvgg.command_line import user_errors
from mmseg_repvgg.deploy.bench_model import bench_model
from mmseg_repvgg.deploy.segmenter import Segmenter


def main() -> None:
    """Parse the options, measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model', help='model written by export, with its .json next to it')
    parser.add_argument('--runtime', help='runtime (default: one that reads the file)')
    parser.add_argument('--device', help="device of the runtime: 'cuda' (default: CPU)")
    parser.add_argument('--threads', type=int, help='threads of the runtime')
    parser.add_argument('--batch', type=int, default=1, help='images a call (%(default)s)')
    parser.add_argument(
        '--callers', type=int, default=1, help='threads that call at once (%(default)s)'
    )
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help="size of the images; default: that of the model's input",
    )
    parser.add_argument('--seconds', type=float, default=10, help='how long (%(default)s)')
    parser.add_argument('--json', action='store_true', help='print JSON, with times in seconds')
    args = parser.parse_args()
    with user_errors('bench-model'):
        segmenter = Segmenter(
            args.model, args.runtime, args.threads, max(args.batch, 1), device=args.device
        )
        size = args.size and tuple(args.size)
        timing = bench_model(segmenter, size, args.batch, args.callers, args.seconds)
    print(json.dumps(timing.as_dict()) if args.json else timing)
