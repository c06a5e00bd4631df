"""Export a checkpoint for an inference runtime and compare it with PyTorch (tools/export.py)."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmengine.config import Config
from torch import nn

from mmseg_repvgg.atomic_files import atomic_file, sweep, temporary_folder, writable_folder
from mmseg_repvgg.checks import check_size
from mmseg_repvgg.deploy.describe_model import describe_model, num_channels
from mmseg_repvgg.deploy.export_graph import OUTPUTS, trace
from mmseg_repvgg.deploy.image_pipeline import Preparation, Sample, read_test_pipeline
from mmseg_repvgg.deploy.load_segmentor import load_segmentor, settings_of_preprocessor
from mmseg_repvgg.deploy.model_description import FORMATS, ModelDescription, weight_files
from mmseg_repvgg.deploy.tiling import SMALLEST
from mmseg_repvgg.deploy.verify_export import Match, verify
from mmseg_repvgg.deploy.write_formats import WRITERS
from mmseg_repvgg.reparam.other_families import fuse_method
from mmseg_repvgg.reparam.rewrites import check_names, deployed_copy, describe

EXPORTED = ('branches', 'batchnorm', 'dilation', 'pyramid')
"""The rewrites that change an exported graph; the runtime decides about Winograd. No runtime was
slower with any of them, so all that apply are the default."""


@dataclass(frozen=True)
class Options:
    """Options of :func:`export`."""

    size: tuple[int, int] | None = None  # height, width; None: that of the sliding windows
    dynamic_batch: bool = False
    preprocessing: bool = False  # inside the graph
    argmax: bool = False  # inside the graph
    rewrites: tuple[str, ...] | None = None  # None: EXPORTED
    leave_out: tuple[str, ...] = ()  # transforms of the test pipeline that the caller will do
    tensorrt: bool = True  # an ONNX file must hold only what TensorRT supports
    tolerance: float | None = None  # instead of verify_export.LIMITS
    agreement: float | None = None


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export` did."""

    counts: dict[str, int]  # places changed by each rewrite
    matches: tuple[Match, ...]
    info: ModelDescription
    path: Path
    notes: tuple[str, ...] = ()  # how the file differs from what the config tests

    def __str__(self) -> str:
        rewrites = describe(self.counts) if self.counts else 'none besides those of the checkpoint'
        height, width = self.info.size
        batch = 'any batch' if self.info.dynamic_batch else 'batch 1'
        return '\n'.join(
            [
                f'rewrites: {rewrites}',
                *map(str, self.matches),
                *(f'note: {note}' for note in self.notes),
                f'wrote {self.path} for images of {height}x{width}, {batch}',
            ]
        )


def export(
    cfg: Config,
    checkpoint: str | Path,
    out: str | Path,
    model_format: str | None = None,
    options: Options | None = None,
) -> ExportReport:
    """Export a training or fused checkpoint, and check that the file is equal to PyTorch.

    The file runs in every installed runtime that reads it, and is compared with the network before
    any rewrite. So is a temporary file with an odd input size. Nothing is written to ``out`` unless
    all checks pass.

    Args:
        cfg: The config of the checkpoint.
        checkpoint: The weights, in training form or fused.
        out: The file to write; its description is written next to it, as ``OUT.json``.
        model_format: One of :data:`FORMATS`; by default it follows from the suffix of ``out``.
        options: See :class:`Options`.

    Raises:
        CheckpointError: If the checkpoint does not fit the config.
        EquivalenceError: If the output of a runtime differs from PyTorch.
        ValueError: If the network cannot be exported, or on a wrong argument.
        RuntimeError: If a package for the format is not installed.
    """
    options, out = options or Options(), Path(os.path.abspath(out))
    model_format = _check_format(out, model_format)
    _check_size(cfg, options.size)
    preparation = read_test_pipeline(cfg, options.leave_out)
    reference, loaded = load_segmentor(cfg, checkpoint)
    sample = Sample.of(cfg, preparation, num_channels(reference))
    size, stride = _size_and_stride(cfg, options.size, sample.tested_size)
    rewritten, counts, rewrites = _rewrite(reference, options.rewrites)
    info = describe_model(
        cfg,
        reference,
        loaded,
        Path(checkpoint),
        preparation,
        format=model_format,
        size=size,
        stride=stride,
        dynamic_batch=options.dynamic_batch,
        preprocessing_inside=options.preprocessing,
        argmax_inside=options.argmax,
        rewrites=rewrites,
    )
    check = partial(
        verify,
        reference=reference,
        image=sample.image,
        name=sample.name,
        tolerance=options.tolerance,
        agreement=options.agreement,
        normalize=preparation.normalize,
    )
    info, matches = _write_verified(rewritten, info, out, check, options.tensorrt)
    notes = tuple(_notes(cfg, options, preparation, sample, size))
    return ExportReport(counts, tuple(matches), info, out, notes)


def odd_size(size: tuple[int, int]) -> tuple[int, int]:
    """Half of a size, rounded to odd numbers, to check sizes that no stride divides."""
    height, width = size
    return max(height // 2, SMALLEST) | 1, max(width // 2, SMALLEST) | 1


def _check_format(out: Path, model_format: str | None) -> str:
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    found = model_format or by_suffix.get(out.suffix)
    if found not in FORMATS or out.suffix != FORMATS[found]:
        endings = ', '.join(f'{suffix} for {name}' for name, suffix in FORMATS.items())
        raise ValueError(
            f'OUT {str(out)!r} does not have the suffix of {model_format or "any format"}; it must '
            f'end in {endings}'
        )
    if out.is_dir():
        raise ValueError(f'OUT {str(out)!r} is a folder; give the file to write')
    return found


def _check_size(cfg: Config, size: Sequence[int] | None) -> None:
    """Check the chosen size before anything is loaded."""
    if size is not None:
        check_size('size', size)
    elif not _slides(cfg):
        raise ValueError(
            f'{cfg.filename} tests whole images and sets no size: give --size HEIGHT WIDTH'
        )


def _slides(cfg: Config) -> bool:
    test_cfg = (cfg.get('model') or {}).get('test_cfg') or {}
    return test_cfg.get('mode') == 'slide'


def _size_and_stride(
    cfg: Config, size: Sequence[int] | None, tested: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Size of the input, and stride of sliding windows of that size (None: whole images).

    Args:
        cfg: The config.
        size: Height and width; None: of the config's windows, shrunk to the test images as
            by mmseg.
        tested: Height and width of test images; None: not known.
    """
    test_cfg = cfg.model.get('test_cfg') or {}
    if size is None:
        size = tuple(map(min, test_cfg['crop_size'], tested or test_cfg['crop_size']))
    if min(size) < SMALLEST:
        raise ValueError(f'size={tuple(size)} must be height and width of at least {SMALLEST}')
    height, width = map(int, size)
    if not _slides(cfg):
        return (height, width), None
    # windows leave no gaps
    return (height, width), (min(height, test_cfg['stride'][0]), min(width, test_cfg['stride'][1]))


def _notes(
    cfg: Config, options: Options, preparation: Preparation, sample: Sample, size: tuple[int, int]
) -> Iterator[str]:
    """Say how the file differs from what the config tests."""
    test_cfg = cfg.model.get('test_cfg') or {}
    tested, slides = sample.tested_size, _slides(cfg)
    if slides and options.size is None and size != tuple(test_cfg['crop_size']):
        yield (
            f'windows are {size[0]}x{size[1]}, not {test_cfg["crop_size"]}: the test images are '
            'smaller than the crop_size of the config, and mmseg shrinks windows to the image'
        )
    if not slides and tested is not None and tested != size:
        yield (
            f'the config tests images at {tested[0]}x{tested[1]} or other sizes; the exported '
            f'model resizes all to {size[0]}x{size[1]}'
        )
    padding = (settings_of_preprocessor(cfg) or {}).get('test_cfg')
    if padding:
        yield f'the config pads test images ({dict(padding)}); the exported model does not'
    if preparation.augmented:
        yield 'the test-time augmentation of the pipeline is left out'
    if preparation.left_out:
        yield f'left to the caller: {", ".join(preparation.left_out)} of the test pipeline'


def _rewrite(
    reference: nn.Module, chosen: tuple[str, ...] | None
) -> tuple[nn.Module, dict[str, int], tuple[str, ...]]:
    """Return a rewritten copy, the places changed by each rewrite, and all rewrites in the copy."""
    done = [name for name in EXPORTED if name in getattr(reference, 'rewrites', ())]  # if fused
    wanted = EXPORTED if chosen is None else _check_rewrites(chosen)
    names = [name for name in wanted if name not in done]
    if chosen is None and not any(map(fuse_method, reference.modules())):
        names = [name for name in names if name != 'branches']
    rewritten, counts = deployed_copy(reference, names) if names else (copy.deepcopy(reference), {})
    if chosen is None:
        counts = {name: count for name, count in counts.items() if count}
    return rewritten, counts, tuple(name for name in EXPORTED if name in (*done, *counts))


def _check_rewrites(rewrites: tuple[str, ...]) -> tuple[str, ...]:
    names = check_names(rewrites)
    others = [name for name in names if name not in EXPORTED]
    if others:
        raise ValueError(
            f'rewrites={others} act in PyTorch only and do not change an exported file; '
            f'choose from {", ".join(EXPORTED)}'
        )
    return names


def _write_verified(
    model: nn.Module,
    info: ModelDescription,
    out: Path,
    check: Callable[[Path], list[Match]],
    tensorrt: bool,
) -> tuple[ModelDescription, list[Match]]:
    """Write a model, and one of an odd size to a temporary file, and check both before moving."""
    sweep(writable_folder(out.parent))
    with tempfile.TemporaryDirectory(prefix=temporary_folder(out.parent)) as temporary:
        written, odd = Path(temporary) / out.name, Path(temporary) / 'odd' / out.name
        odd.parent.mkdir()
        info = _write(model, written, info)
        if tensorrt and info.format == 'onnx':
            from mmseg_repvgg.deploy.tensorrt import check_tensorrt

            check_tensorrt(written)
        matches = check(written)
        _write(model, odd, replace(info, size=odd_size(info.size)))
        matches += check(odd)
        _move(written, out)
    return info, matches


def _write(model: nn.Module, path: Path, info: ModelDescription) -> ModelDescription:
    """Write a model and its description, which is returned."""
    WRITERS[info.format](trace(model, info), path, OUTPUTS[info.argmax_inside])
    return info.write(path)


def _move(written: Path, out: Path) -> None:
    """Move all files of an export to the folder of ``out``, the model itself last.

    First all files are synced to disk and an older model is deleted, so an interrupted move never
    leaves a model next to the description of another. Weight files of an older model are deleted.
    """
    files = [file for file in written.parent.iterdir() if file.is_file() and file != written]
    with ExitStack() as stack:
        for file in (written, *files):  # exited in reverse order
            temporary = stack.enter_context(atomic_file(out.with_name(file.name)))
            shutil.move(file, temporary)  # OUT may be a link to another file system
            with temporary.open('rb+') as stream:
                os.fsync(stream.fileno())
        Path(os.path.realpath(out)).unlink(missing_ok=True)
    moved = {file.name for file in files}
    for old in weight_files(out):
        if old.name not in moved:
            old.unlink(missing_ok=True)
