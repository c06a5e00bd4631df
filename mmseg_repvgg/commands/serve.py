"""Serve an exported model over HTTP: ``mmseg-repvgg serve b2.onnx --port 8000``.

POST an image file to /labels for a PNG of class indices, or to /overlay for a picture; GET /health,
/model and /metrics. There is no authentication: by default only this machine can connect.
"""

import argparse

from mmseg_repvgg.command_line import user_errors
from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.deploy.service import Limits, create_app, run


def main() -> None:
    """Parse the options, load the model, and serve until interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model', help='model written by export, with its .json next to it')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen at (%(default)s)')
    parser.add_argument('--port', type=int, default=8000, help='0: any free one (%(default)s)')
    parser.add_argument('--runtime', help='runtime (default: one that reads the file)')
    parser.add_argument('--device', help="device of the runtime: 'cuda' (default: CPU)")
    parser.add_argument('--threads', type=int, help='threads of the runtime for an image')
    parser.add_argument(
        '--at-once', type=int, default=1, help='images segmented at the same time (%(default)s)'
    )
    parser.add_argument(
        '--waiting', type=int, default=16, help='images that may wait; others get 503 (%(default)s)'
    )
    parser.add_argument(
        '--max-mb', type=int, default=20, help='largest image file, in MiB (%(default)s)'
    )
    parser.add_argument(
        '--max-megapixels', type=int, default=25, help='largest image (%(default)s)'
    )
    parser.add_argument(
        '--pad-small-images',
        action='store_true',
        help='pad images smaller than the windows of the model instead of refusing them',
    )
    args = parser.parse_args()
    with user_errors('serve'):
        limits = Limits(
            args.max_mb * 2**20, args.max_megapixels * 10**6, args.at_once, args.waiting
        )
        segmenter = Segmenter(
            args.model,
            args.runtime,
            args.threads,
            pad_small_images=args.pad_small_images,
            device=args.device,
        )
        segmenter.warm_up()
        run(create_app(segmenter, args.model, limits), args.host, args.port)
