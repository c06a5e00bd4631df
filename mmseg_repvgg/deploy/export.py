"""Export a checkpoint for an inference runtime and compare it with PyTorch (tools/export.py)."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from mmseg_repvgg.atomic_files import atomic_file, sweep, temporary_folder, writable_folder
from mmseg_repvgg.deploy.describe_model import describe_model, num_channels
from mmseg_repvgg.deploy.export_graph import OUTPUTS, trace
from mmseg_repvgg.deploy.half_precision import HalfExport, check_half_format
from mmseg_repvgg.deploy.image_pipeline import Sample, read_test_pipeline
from mmseg_repvgg.deploy.input_size import (
    check_chosen_size,
    differences,
    odd_size,
    size_and_stride,
)
from mmseg_repvgg.deploy.load_segmentor import load_segmentor
from mmseg_repvgg.deploy.model_description import (
    FORMATS,
    SMALLEST_OF_ANY,
    ModelDescription,
    weight_files,
)
from mmseg_repvgg.deploy.onnx_metadata import write_metadata
from mmseg_repvgg.deploy.quantize.export_int8 import Int8Export, draw_images
from mmseg_repvgg.deploy.quantize.options import Int8Options
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
    dynamic_size: bool = False  # any height and width, and any batch
    preprocessing: bool = False  # inside the graph
    argmax: bool = False  # inside the graph
    rewrites: tuple[str, ...] | None = None  # None: EXPORTED
    leave_out: tuple[str, ...] = ()  # transforms of the test pipeline that the caller will do
    tensorrt: bool = True  # an ONNX file must hold only what TensorRT supports
    tolerance: float | None = None  # instead of verify_export.LIMITS
    agreement: float | None = None
    fp16: bool = False  # weights in float16
    int8: Int8Options | None = None  # weights and feature maps in int8


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export` did."""

    counts: dict[str, int]  # places changed by each rewrite
    matches: tuple[Match, ...]
    info: ModelDescription
    path: Path
    notes: tuple[str, ...] = ()  # how the file differs from what the config tests
    converted: tuple[Any, ...] = ()  # how the file in fp16 or int8 compares with float32

    def __str__(self) -> str:
        rewrites = describe(self.counts) if self.counts else 'none besides those of the checkpoint'
        height, width = self.info.size
        batch = 'any batch' if self.info.dynamic_batch else 'batch 1'
        precision = '' if self.info.precision == 'fp32' else f' in {self.info.precision}'
        size = f'{height}x{width}'
        if self.info.dynamic_size:
            windows = f', by default in windows of {size}' if self.info.stride else ''
            size = f'any size from {SMALLEST_OF_ANY}x{SMALLEST_OF_ANY}{windows}'
        return '\n'.join(
            [
                f'rewrites: {rewrites}',
                *map(str, self.matches),
                *map(str, self.converted),
                *(f'note: {note}' for note in self.notes),
                f'wrote {self.path}{precision} for images of {size}, {batch}',
            ]
        )


def export(
    cfg: Config,
    checkpoint: str | Path,
    out: str | Path,
    model_format: str | None = None,
    options: Options | None = None,
    check_description: Callable[[ModelDescription], None] | None = None,
) -> ExportReport:
    """Export a training or fused checkpoint, and check that the file is equal to PyTorch.

    The file runs in every installed runtime that reads it, and is compared with the network before
    any rewrite. So is a temporary file with an odd input size; a file for all sizes is compared at
    five odd sizes. A file in fp16 or int8 is made from the float32 file, and compared as well.
    Nothing is written to ``out`` unless all checks pass.

    Args:
        cfg: The config of the checkpoint.
        checkpoint: The weights, in training form or fused.
        out: The file to write; its description is written next to it, as ``OUT.json``.
        model_format: One of :data:`FORMATS`; by default it follows from the suffix of ``out``.
        options: See :class:`Options`.
        check_description: Called with the description, before anything is written; may raise.

    Raises:
        CheckpointError: If the checkpoint does not fit the config.
        EquivalenceError: If the output of a runtime differs from PyTorch, or int8 loses too much.
        FileNotFoundError: If there are no images for int8.
        ValueError: If the network cannot be exported, or on a wrong argument.
        RuntimeError: If a package for the format is not installed.
    """
    options, out = options or Options(), Path(os.path.abspath(out))
    model_format = _check_format(out, model_format)
    _check_precision(options, model_format)
    check_chosen_size(cfg, options.size, options.dynamic_size)
    preparation = read_test_pipeline(cfg, options.leave_out)
    images = draw_images(cfg, options.int8) if options.int8 else None
    reference, loaded = load_segmentor(cfg, checkpoint)
    sample = Sample.of(cfg, preparation, num_channels(reference))
    size, stride = size_and_stride(cfg, options.size, sample, options.dynamic_size)
    rewritten, counts, rewrites = _rewrite(reference, options, model_format)
    info = describe_model(
        cfg,
        reference,
        loaded,
        Path(checkpoint),
        preparation,
        format=model_format,
        size=size,
        stride=stride,
        dynamic_batch=options.dynamic_batch or options.dynamic_size,
        dynamic_size=options.dynamic_size,
        preprocessing_inside=options.preprocessing,
        argmax_inside=options.argmax,
        rewrites=rewrites,
    )
    if check_description is not None:
        check_description(info)
    check = partial(
        verify,
        reference=reference,
        image=sample.image,
        name=sample.name,
        tolerance=options.tolerance,
        agreement=options.agreement,
        normalize=preparation.normalize,
    )
    conversion: HalfExport | Int8Export | None = None
    if images is not None and options.int8 is not None:
        conversion = Int8Export(reference, rewritten, preparation, info, options.int8, images)
        check = partial(check, agreement=None)  # it is the limit of int8
        info = replace(info, rewrites=(*rewrites, *conversion.equalize(counts)))
        rewritten = conversion.rewritten
    elif options.fp16:
        conversion = HalfExport(check, options.tolerance, options.agreement)
        check = partial(check, tolerance=None, agreement=None)
    info, matches = _write_verified(rewritten, info, out, check, options.tensorrt, conversion)
    notes = [*differences(cfg, options.size, preparation, sample, info)]
    converted: tuple[Any, ...] = ()
    if conversion is not None:
        converted = tuple(conversion.results)
        notes += conversion.notes
    return ExportReport(counts, tuple(matches), info, out, tuple(notes), converted)


def _check_precision(options: Options, model_format: str) -> None:
    """Check that the format can hold what is wanted, before anything is loaded."""
    if options.fp16 and options.int8:
        raise ValueError('fp16 and int8 cannot be combined: choose one')
    if options.int8 and options.dynamic_size:
        raise ValueError(
            'int8 is calibrated for images of one size: give --size HEIGHT WIDTH instead of '
            '--dynamic-size'
        )
    if options.fp16:
        check_half_format(model_format)
    if options.int8:
        options.int8.check_format(model_format)


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


def _rewrite(
    reference: nn.Module, options: Options, model_format: str
) -> tuple[nn.Module, dict[str, int], tuple[str, ...]]:
    """Return a rewritten copy, the places changed by each rewrite, and all rewrites in the copy."""
    exported = tuple(name for name in EXPORTED if not (options.dynamic_size and name == 'dilation'))
    chosen = options.rewrites
    done = [name for name in exported if name in getattr(reference, 'rewrites', ())]  # if fused
    slows_down = options.int8 is not None and model_format == 'onnx'  # by transposing int8 maps
    usual = [name for name in exported if not (slows_down and name == 'dilation')]
    wanted = usual if chosen is None else _check_rewrites(chosen, exported)
    names = [name for name in wanted if name not in done]
    if chosen is None and not any(map(fuse_method, reference.modules())):
        names = [name for name in names if name != 'branches']
    rewritten, counts = deployed_copy(reference, names) if names else (copy.deepcopy(reference), {})
    if chosen is None:
        counts = {name: count for name, count in counts.items() if count}
    return rewritten, counts, tuple(name for name in exported if name in (*done, *counts))


def _check_rewrites(rewrites: tuple[str, ...], exported: tuple[str, ...]) -> tuple[str, ...]:
    names = check_names(rewrites)
    others = [name for name in names if name not in EXPORTED]
    if others:
        raise ValueError(
            f'rewrites={others} act in PyTorch only and do not change an exported file; '
            f'choose from {", ".join(EXPORTED)}'
        )
    if not set(names) <= set(exported):
        raise ValueError(
            "the rewrite 'dilation' pads maps by their size, and a file for all sizes keeps the "
            f'dilated convs: choose from {", ".join(exported)}'
        )
    return names


def _write_verified(
    model: nn.Module,
    info: ModelDescription,
    out: Path,
    check: Callable[[Path], list[Match]],
    tensorrt: bool,
    convert: Callable[[Path, ModelDescription], ModelDescription] | None,
) -> tuple[ModelDescription, list[Match]]:
    """Write a model, and one of an odd size to a temporary file, and check both before moving.

    A model for all sizes is checked at several itself.
    With ``convert``, the written file is then replaced by one in another precision.
    """
    sweep(writable_folder(out.parent))
    with tempfile.TemporaryDirectory(prefix=temporary_folder(out.parent)) as temporary:
        written, odd = Path(temporary) / out.name, Path(temporary) / 'odd' / out.name
        odd.parent.mkdir()
        info = _write(model, written, info)
        if tensorrt and info.format == 'onnx':
            from mmseg_repvgg.deploy.tensorrt import check_tensorrt

            check_tensorrt(written)
        matches = check(written)
        if not info.dynamic_size:
            _write(model, odd, replace(info, size=odd_size(info.size)))
            matches += check(odd)
        if convert is not None:
            info = _describe(convert(written, info), written)
        _move(written, out)
    return info, matches


def _write(model: nn.Module, path: Path, info: ModelDescription) -> ModelDescription:
    """Write a model and its description, which is returned."""
    WRITERS[info.format](trace(model, info), path, OUTPUTS[info.argmax_inside])
    return _describe(info, path)


def _describe(info: ModelDescription, path: Path) -> ModelDescription:
    """Write a description into ONNX files and next to all; returns what was written."""
    if info.format == 'onnx':
        write_metadata(path, info)
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
