"""Segment an image, a folder or a video: ``mmseg-repvgg predict b2.onnx images out``.

For an image NAME.* writes NAME.png, the class index of each pixel, and NAME_overlay.jpg; for a
video NAME_overlay.mp4. Exit code 1 means that some files could not be segmented; they are listed.
"""

import argparse
from pathlib import Path

from mmseg_repvgg.command_line import user_errors
from mmseg_repvgg.deploy.predict import predict
from mmseg_repvgg.deploy.segmenter import Segmenter


def main() -> None:
    """Parse the options, segment, and print what was done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model', help='model written by export, with its .json next to it')
    parser.add_argument('input', type=Path, help='image, folder of images, or video')
    parser.add_argument('out', type=Path, help='folder to write to')
    parser.add_argument('--runtime', help='runtime (default: one that reads the file)')
    parser.add_argument('--device', help="device of the runtime: 'cuda' (default: CPU)")
    parser.add_argument('--threads', type=int, help='threads of the runtime')
    parser.add_argument(
        '--opacity', type=float, default=0.5, help='opacity of overlays (%(default)s)'
    )
    parser.add_argument(
        '--pad-small-images',
        action='store_true',
        help='pad images smaller than the windows of the model instead of refusing them',
    )
    args = parser.parse_args()
    with user_errors('predict'):
        segmenter = Segmenter(
            args.model,
            args.runtime,
            args.threads,
            pad_small_images=args.pad_small_images,
            device=args.device,
        )
        report = predict(segmenter, args.input, args.out, args.opacity)
    print(report)
    raise SystemExit(1 if report.failures else 0)
