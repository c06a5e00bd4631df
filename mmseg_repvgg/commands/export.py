"""Export a checkpoint: ``mmseg-repvgg export CONFIG CHECKPOINT OUT.onnx --size 512 1024``.

Takes a training or a fused checkpoint, with its config. Writes OUT and its description OUT.json.
Exit code 0 means that the file was run in every installed runtime that reads it and agreed with
PyTorch; otherwise nothing is written.

``--int8`` quantizes weights and feature maps, with images of the training set or of a folder:
``mmseg-repvgg export CONFIG CHECKPOINT OUT.onnx --int8 --calibration FOLDER``.
"""

import argparse
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

from mmseg_repvgg.command_line import config_parser, user_errors
from mmseg_repvgg.deploy.export import EXPORTED, Options, export
from mmseg_repvgg.deploy.model_description import FORMATS
from mmseg_repvgg.deploy.quantize.options import CALIBRATORS, Int8Options
from mmseg_repvgg.deploy.triton import check_repository, write_repository
from mmseg_repvgg.deploy.web import check_description, check_page, needs_runtime, write_page
from mmseg_repvgg.deploy.web_runtime import web_runtime
from mmseg_repvgg.engine import launch


def main() -> None:
    """Parse the options, export, and print the report."""
    parser = config_parser(__doc__, 'config of the checkpoint')
    _add_options(parser)
    _add_int8(parser)
    args = parser.parse_args()
    if args.web_runtime and not args.web:
        parser.error('--web-runtime has no effect without --web')
    with user_errors('export'), ExitStack() as stack:
        options = _options(parser, args)
        cfg = launch.load_config(args.config, args.cfg_options)
        if args.triton:
            check_repository(args.out, args.triton)
        runtime, check = None, None
        if args.web:
            check_page(args.out, args.web)
            check = check_description
            if needs_runtime(args.web):
                runtime = stack.enter_context(web_runtime(args.web_runtime))
        print(export(cfg, args.checkpoint, args.out, args.model_format, options, check))
        if args.triton:
            print(f'wrote {write_repository(args.out, args.triton)}')
        if args.web:
            print(f'wrote {write_page(args.out, args.web, runtime)}')


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options but those of int8."""
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
        '--dynamic-size',
        action='store_true',
        help='take images of any size, and any number; --size is then that of sliding windows',
    )
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
    parser.add_argument(
        '--triton', metavar='DIR', help='also copy it into a model repository of Triton'
    )
    parser.add_argument(
        '--web', metavar='DIR', help='also copy it into a page that runs it in the browser'
    )
    parser.add_argument(
        '--web-runtime',
        metavar='PATH',
        help='tarball or folder of the npm package onnxruntime-web; default: npm downloads it',
    )
    parser.add_argument('--tolerance', type=float, help='largest relative difference of logits')
    parser.add_argument('--agreement', type=float, help='smallest share of pixels of equal class')
    parser.add_argument('--fp16', action='store_true', help='float16 weights (.onnx, .xml, .mnn)')


def _options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Options:
    return Options(
        size=args.size and tuple(args.size),
        dynamic_batch=args.dynamic_batch,
        dynamic_size=args.dynamic_size,
        preprocessing=args.preprocessing,
        argmax=args.argmax,
        rewrites=args.rewrites and tuple(args.rewrites),
        leave_out=tuple(args.leave_out),
        tensorrt=not args.no_tensorrt,
        tolerance=args.tolerance,
        agreement=args.agreement,
        fp16=args.fp16,
        int8=_int8_options(parser, args),
    )


def _add_int8(parser: argparse.ArgumentParser) -> None:
    """Add the options of int8; None means that one was not given."""
    group = parser.add_argument_group('int8', 'see docs/int8.md')
    group.add_argument('--int8', action='store_true', help='quantize to int8 (.onnx, .xml, .pt2)')
    group.add_argument(
        '--calibration',
        metavar='DATA',
        help='train, val or test of the config, or a folder of images; default: train',
    )
    group.add_argument('--calibration-images', dest='images', type=int, help='default: 64')
    group.add_argument('--seed', type=int, help='of drawing images; default: 0')
    group.add_argument(
        '--calibrator', choices=CALIBRATORS['onnx'], help='of feature maps; default: min-max'
    )
    group.add_argument(
        '--per-tensor', action='store_true', default=None, help='one scale for a whole kernel'
    )
    group.add_argument(
        '--weight-bits', type=int, choices=(7, 8), help='7 never saturates; default: 8'
    )
    group.add_argument(
        '--symmetric', action='store_true', default=None, help='zero points are 0, for TensorRT'
    )
    group.add_argument('--no-equalize', dest='equalize', action='store_false', default=None)
    group.add_argument(
        '--keep-float',
        type=_number_or_auto,
        metavar='N|auto',
        help='leave the N most sensitive layers in float, or as few as the limits need; default: 0',
    )
    group.add_argument(
        '--sensitivity', metavar='FILE', help='draw how sensitive every layer is (.png or .svg)'
    )
    group.add_argument('--check-images', type=int, help='of the test set; default: 20')
    group.add_argument('--miou-drop', type=float, help='points that may be lost; default: 0.5')


def _number_or_auto(text: str) -> int | str:
    return text if text == 'auto' else int(text)


def _int8_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Int8Options | None:
    """The options of int8 that were given, or None without ``--int8``."""
    names = [field.name for field in fields(Int8Options)]
    values = {name: getattr(args, name, None) for name in names}
    given: dict[str, Any] = {name: v for name, v in values.items() if v is not None}
    if args.int8:
        return Int8Options(**given)
    others = [name for name in given if name != 'agreement']
    if others:
        parser.error(f'{", ".join(others)} have no effect without --int8')
    return None
