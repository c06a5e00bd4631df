"""Draw a training or a model: ``mmseg-repvgg plot curves WORK_DIR``.

``--out`` names the picture, PNG or SVG; by default it is the kind, such as ``curves.png``.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mmseg_repvgg.command_line import config_parser, user_errors
from mmseg_repvgg.deploy.fuse import load_training_model, test_inputs
from mmseg_repvgg.deploy.load_segmentor import load_segmentor
from mmseg_repvgg.engine import launch
from mmseg_repvgg.plots import classes, curves, layers, predictions
from mmseg_repvgg.plots.style import check_suffix, save
from mmseg_repvgg.reparam.equivalence import random_images, tolerance_of


def main() -> None:
    """Parse the options, draw, and print the names of the files."""
    args = _parser().parse_args()
    out = args.out or Path(f'{args.kind}.png')
    with user_errors(f'plot {args.kind}'):
        check_suffix(out)
        warnings.simplefilter('ignore')  # mmseg warns about settings of the config
        save(args.draw(args, out), out)
    print(f'wrote {out}')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument('--out', type=Path, help='picture to write, .png or .svg')
    model = config_parser(None, add_help=False)
    model.add_argument('checkpoint', help='checkpoint file')

    def add(name: str, text: str, draw, *parents) -> argparse.ArgumentParser:
        kind = kinds.add_parser(name, help=text, description=text, parents=[*parents, output])
        kind.set_defaults(draw=draw)
        return kind

    kind = add('curves', 'loss, mIoU and learning rate of one or several trainings', _curves)
    kind.add_argument('folders', nargs='+', type=Path, metavar='WORK_DIR', help='work folders')
    kind.add_argument(
        '--smooth', type=int, metavar='N', help='losses to average over (default: 5 %% of them)'
    )
    add(
        'confusion',
        'confusion matrix over the test set; also writes its numbers (OUT.json) and the IoU of '
        'each class (OUT_iou.png)',
        _confusion,
        model,
    )
    kind = add('classes', 'IoU of each class, of one or several models', _classes)
    kind.add_argument(
        'files', nargs='+', type=Path, metavar='JSON', help='files of mmseg-repvgg plot confusion'
    )
    kind.add_argument('--sort', action='store_true', help='the best class first')
    kind = add(
        'predictions', 'images, their labels, and what one or several models predict', _predictions
    )
    several: Any = dict(
        nargs='+', metavar='CONFIG CHECKPOINT', help='a config and its checkpoint, or more'
    )
    kind.add_argument('models', **several)
    kind.add_argument('--images', type=int, default=8, help='how many (%(default)s)')
    kind = add(
        'ranges',
        'largest weight of every fused kernel, in standard deviations, of one or several models: '
        'what int8 must cover',
        _ranges,
    )
    kind.add_argument('models', **several)
    add('branches', 'norms of the kernels of every branch, by layer', _branches, model)
    kind = add(
        'difference',
        'relative difference of every layer before and after fusing, on a test image',
        _difference,
        model,
    )
    kind.add_argument('--random', action='store_true', help='on random input instead')
    return parser


def _curves(args: argparse.Namespace, out: Path) -> Figure:
    return curves.draw_curves(curves.read_trainings(args.folders), args.smooth)


def _confusion(args: argparse.Namespace, out: Path) -> Figure:
    cfg = launch.load_config(args.config, args.cfg_options)
    found = classes.measure_confusion(cfg, args.checkpoint, out.with_suffix('.json'))
    bars = out.with_stem(f'{out.stem}_iou')
    save(classes.draw_classes([found]), bars)
    print(f'wrote {out.with_suffix(".json")}\nwrote {bars}')
    return classes.draw_confusion(found)


def _classes(args: argparse.Namespace, out: Path) -> Figure:
    return classes.draw_classes([classes.Confusion.read(f) for f in args.files], args.sort)


def _predictions(args: argparse.Namespace, out: Path) -> Figure:
    return predictions.draw_predictions(
        [predictions.predict(launch.load_config(c), w, args.images) for c, w in _pairs(args)]
    )


def _pairs(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Config and checkpoint of each model."""
    if len(args.models) % 2:
        raise ValueError('give a checkpoint after each config: CONFIG CHECKPOINT ...')
    return list(zip(args.models[::2], args.models[1::2], strict=True))


def _ranges(args: argparse.Namespace, out: Path) -> Figure:
    found = {}
    for config, checkpoint in _pairs(args):
        model, _ = load_segmentor(launch.load_config(config), checkpoint)
        name = Path(config).stem if Path(config).stem not in found else checkpoint
        found[name] = layers.KernelRanges.of(model)
    return layers.draw_ranges(found)


def _branches(args: argparse.Namespace, out: Path) -> Figure:
    cfg = launch.load_config(args.config, args.cfg_options)
    model, _ = load_training_model(cfg, args.checkpoint)
    return layers.draw_branches(layers.branch_norms(model))


def _difference(args: argparse.Namespace, out: Path) -> Figure:
    cfg = launch.load_config(args.config, args.cfg_options)
    model, _ = load_training_model(cfg, args.checkpoint)
    images = random_images(model) if args.random else next(test_inputs(cfg, model, 1), None)
    if images is None:
        raise ValueError('the images of test_dataloader are not there; add --random')
    return layers.draw_differences(layers.fusing_differences(model, images), tolerance_of(model))
