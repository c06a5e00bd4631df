"""Segment an image, a folder or a video: ``mmseg-repvgg predict b2.onnx images out``.

For an image NAME.* writes NAME.png, the class of each pixel, and NAME_overlay.jpg; for a video
NAME_overlay.webm, without sound, which browsers play. Prints the share of each class in the pixels.
Exit code 1 means that some files could not be segmented; they are listed.

--engine ray is for large folders: several processes, on this machine or on a cluster, write label
maps and a Parquet table of the share of each class in each image.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    parser.add_argument(
        'input',
        help='image, folder of images, or video; with ray a folder, also s3://bucket/folder',
    )
    parser.add_argument('out', help='folder to write to; with ray also s3://bucket/folder')
    parser.add_argument('--runtime', help='runtime (default: one that reads the file)')
    parser.add_argument('--device', help="device of the runtime: 'cuda' (default: CPU)")
    parser.add_argument(
        '--threads', type=int, help='threads of the runtime; with ray of each worker'
    )
    parser.add_argument('--opacity', type=float, help='opacity of overlays (0.5)')
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
    ray = parser.add_argument_group('large sets of images')
    ray.add_argument(
        '--engine', choices=('loop', 'ray'), default='loop', help='default: %(default)s'
    )
    ray.add_argument(
        '--workers',
        type=int,
        help='processes (default: one per CPU; the CPUs are shared among them)',
    )
    ray.add_argument(
        '--address',
        help='of a Ray cluster: HOST:PORT, or auto (default: start Ray on this machine)',
    )
    args = parser.parse_args()
    with user_errors('predict'):
        report = _with_ray(args) if args.engine == 'ray' else _loop(args)
    print(report)
    raise SystemExit(1 if report.failures else 0)


def _segmenter(args: argparse.Namespace, threads: int | None) -> Segmenter:
    return Segmenter(
        args.model,
        args.runtime,
        threads,
        pad_small_images=args.pad_small_images,
        device=args.device,
    )


def _loop(args: argparse.Namespace) -> Any:
    _refuse(args, 'loop', workers=None, address=None)
    return predict(
        _segmenter(args, args.threads),
        Path(args.input),
        Path(args.out),
        0.5 if args.opacity is None else args.opacity,
        save_labels=args.save_labels,
        legend=args.legend,
        resume=args.resume,
        overwrite=args.overwrite,
    )


def _with_ray(args: argparse.Namespace) -> Any:
    _refuse(args, 'ray', opacity=None, legend=True, overwrite=False)
    missing = [name for name in ('ray', 'pyarrow') if find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f'--engine ray needs {" and ".join(missing)}, not installed here: '
            "pip install 'mmseg-repvgg[ray]'"
        )
    from mmseg_repvgg.deploy.predict_ray import predict_ray
    from mmseg_repvgg.deploy.ray_workers import Workers

    num_gpus = int(args.device == 'cuda')
    workers = Workers.sharing_cores(args.workers, args.threads, args.address, num_gpus)
    segmenter = _segmenter(args, workers.threads)
    return predict_ray(segmenter, args.input, args.out, workers, args.save_labels, args.resume)


def _refuse(args: argparse.Namespace, engine: str, **defaults: Any) -> None:
    """Refuse options that have no effect with an engine."""
    for name, default in defaults.items():
        if getattr(args, name) != default:
            option = '--no-legend' if name == 'legend' else f'--{name}'
            raise ValueError(f'{option} has no effect with --engine {engine}: leave it out')
