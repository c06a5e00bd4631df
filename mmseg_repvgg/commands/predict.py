"""Segment an image, a folder or a video: ``mmseg-repvgg predict b2.onnx images out``.

For an image NAME.* writes NAME.png, the class of each pixel, and NAME_overlay.jpg; for a video
NAME_overlay.webm, without sound, which browsers play. Prints the share of each class in the pixels.
Exit code 1 means that some files could not be segmented; they are listed.
"""

import argparse
from pathlib import Path

from mmseg_repvgg.command_line import user_errors
from mmseg_repvgg.deploy.predict import predict
from mmseg_repvgg.deploy.result_files import LABEL_FORMATS
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
        '--no-legend', dest='legend', action='store_false', help='no legend beneath overlays'
    )
    parser.add_argument(
        '--save-labels',
        choices=LABEL_FORMATS,
        default='palette',
        help='NAME.png of images: indices with a palette of the colours (default), indices alone, '
        'the ids that the Cityscapes server takes, or none',
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        '--resume',
        action='store_true',
        help='skip what the same model has done with the same options',
    )
    existing.add_argument(
        '--overwrite',
        action='store_true',
        help='overwrite files of the same name; otherwise only results of images are overwritten',
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
        report = predict(
            segmenter,
            args.input,
            args.out,
            args.opacity,
            save_labels=args.save_labels,
            legend=args.legend,
            resume=args.resume,
            overwrite=args.overwrite,
        )
    print(report)
    raise SystemExit(1 if report.failures else 0)
