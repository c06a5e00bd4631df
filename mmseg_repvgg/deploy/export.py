"""A checkpoint -> a file for an inference runtime, proved equal (tools/export.py)."""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.atomic_files import atomic_file, sweep, temporary_folder, writable_folder
from mmseg_repvgg.checkpoint.loading import load_strictly
from mmseg_repvgg.checkpoint.reading import read_checkpoint, state_dict_of
from mmseg_repvgg.deploy.export_graph import OUTPUTS, Graph, Normalisation, trace
from mmseg_repvgg.deploy.fuse import without_pretrained
from mmseg_repvgg.deploy.model_description import FORMATS, ModelDescription
from mmseg_repvgg.deploy.verify_export import Match, sample_image, verify
from mmseg_repvgg.deploy.write_formats import WRITERS
from mmseg_repvgg.reparam.rewrites import check_names, deployed_copy, describe
from mmseg_repvgg.version import __version__

EXPORTED = ('branches', 'batchnorm', 'dilation', 'pyramid')
"""The rewrites that a graph shows; by Winograd or not is the runtime's choice. No runtime was seen
to be slower with one of them, so that by default all are done that find something to act on."""

SMALLEST = 32  # pixels


@dataclass(frozen=True)
class Options:
    """What is exported, besides the network itself."""

    size: tuple[int, int] | None = None  # height, width; None: that of the sliding windows
    dynamic_batch: bool = False
    preprocessing: bool = False  # inside the graph
    argmax: bool = False  # inside the graph
    rewrites: tuple[str, ...] | None = None  # None: EXPORTED
    tensorrt: bool = True  # an ONNX file must hold only what TensorRT supports
    tolerance: float | None = None  # instead of verify_export.LIMITS
    agreement: float | None = None


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export` did."""

    counts: dict[str, int]  # places changed, by rewrite
    matches: tuple[Match, ...]
    info: ModelDescription
    path: Path

    def __str__(self) -> str:
        rewrites = describe(self.counts) if self.counts else 'none but what the checkpoint holds'
        height, width = self.info.size
        batch = 'any batch' if self.info.dynamic_batch else 'batch 1'
        return '\n'.join(
            [
                f'rewrites: {rewrites}',
                *map(str, self.matches),
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
    """Export a training or fused checkpoint, and prove the file equal to PyTorch.

    The file is loaded in every installed runtime that reads it and compared with the network as it
    was before any rewrite; so is one of an odd size, made for the comparison only. Nothing is
    written to ``out`` before all of that holds.

    Args:
        cfg: The config of the checkpoint.
        checkpoint: The weights, in training form or fused.
        out: The file to write; its description goes beside it, ending in ``.json``.
        model_format: One of :data:`FORMATS`; by default what ``out`` ends in says.
        options: What is exported.

    Raises:
        CheckpointError: If the checkpoint does not fit the config.
        EquivalenceError: If a runtime gives something else than PyTorch.
        ValueError: If the network cannot be exported, or on a wrong argument.
        RuntimeError: If a package for the format is not installed.
    """
    options, out = options or Options(), Path(out)
    model_format = _checked_format(out, model_format)
    size = _checked_size(cfg, options)
    loaded = read_checkpoint(checkpoint)
    reference = load_segmentor(cfg, state_dict_of(loaded), str(checkpoint))
    _check_head(reference, options)
    rewritten, counts, names = _rewrite(cfg, reference, options)
    graph = Graph(rewritten, options.preprocessing, options.argmax)
    info = _describe(cfg, reference, loaded, Path(checkpoint), model_format, options)
    info = replace(info, size=size, stride=_stride(cfg, size), rewrites=names)

    sweep(writable_folder(out.parent))
    with tempfile.TemporaryDirectory(prefix=temporary_folder(out.parent)) as temporary:
        written = _write(graph, Path(temporary) / out.name, info, options.tensorrt)
        matches = _verify(cfg, written, reference, options)
        odd = Path(temporary) / 'odd' / out.name
        odd.parent.mkdir()
        odd_info = replace(info, size=odd_size(size))
        matches += _verify(cfg, _write(graph, odd, odd_info, False), reference, options)
        _move(written, out)
    return ExportReport(counts, tuple(matches), info, out)


def load_segmentor(cfg: Config, state: dict[str, Any], source: str) -> nn.Module:
    """Build the model of a config, training form or fused, and fill it; in eval mode, float32.

    Raises:
        CheckpointError: If the weights do not fill it.
        ValueError: If it is no mmseg segmentor.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    settings = without_pretrained(cfg.model)
    settings.setdefault('data_preprocessor', cfg.get('data_preprocessor'))  # as mmengine's Runner
    model = MODELS.build(settings)
    if not hasattr(model, 'encode_decode'):
        raise ValueError(
            f'model type {cfg.model.type!r} of {cfg.filename} is no segmentor of mmseg, and only '
            'those are exported'
        )
    load_strictly(model, state, source)
    model.eval()
    return model.float()


def odd_size(size: tuple[int, int]) -> tuple[int, int]:
    """Half a size, rounded to odd numbers: for the check of sizes that no stride divides."""
    height, width = size
    return max(height // 2, SMALLEST) | 1, max(width // 2, SMALLEST) | 1


def _checked_format(out: Path, model_format: str | None) -> str:
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    found = model_format or by_suffix.get(out.suffix)
    if found not in FORMATS or out.suffix != FORMATS[found]:
        endings = ', '.join(f'{suffix} for {name}' for name, suffix in FORMATS.items())
        raise ValueError(
            f'OUT {str(out)!r} does not fit the format {model_format or "its name says"}; it must '
            f'end in {endings}'
        )
    return found


def _checked_size(cfg: Config, options: Options) -> tuple[int, int]:
    test_cfg = cfg.model.get('test_cfg') or {}
    size = options.size or (test_cfg.get('crop_size') if test_cfg.get('mode') == 'slide' else None)
    if size is None:
        raise ValueError(
            f'{cfg.filename} evaluates whole images and says no size: give --size HEIGHT WIDTH'
        )
    if len(size) != 2 or min(size) < SMALLEST:
        raise ValueError(f'size={tuple(size)} must be height and width of at least {SMALLEST}')
    return int(size[0]), int(size[1])


def _stride(cfg: Config, size: tuple[int, int]) -> tuple[int, int] | None:
    """The step of sliding windows, at most a window; None where the config tests whole images."""
    test_cfg = cfg.model.get('test_cfg') or {}
    if test_cfg.get('mode') != 'slide':
        return None
    height, width = test_cfg['stride']
    return min(height, size[0]), min(width, size[1])


def _check_head(model: Any, options: Options) -> None:
    if getattr(model, 'out_channels', 2) == 1:
        raise ValueError(
            'the decode head gives one channel with a threshold (out_channels=1), which has no '
            'argmax; only heads with a channel per class are exported'
        )


def _rewrite(
    cfg: Config, reference: nn.Module, options: Options
) -> tuple[nn.Module, dict[str, int], tuple[str, ...]]:
    """A rewritten copy, the places each rewrite changed, and all that the copy has had."""
    fused = cfg.model.type == 'DeployedModel'
    # by Winograd or not is the runtime's choice, nothing of it is in the graph
    done = tuple(n for n in EXPORTED if n in cfg.model.get('rewrites', ())) if fused else ()
    if options.rewrites is None:
        names = [n for n in EXPORTED if n not in done]
        if not any(hasattr(m, 'get_equivalent_kernel_bias') for m in reference.modules()):
            names = [name for name in names if name != 'branches']
    else:
        names = [name for name in _exportable(options.rewrites) if name not in done]
    if not names:
        return copy.deepcopy(reference), {}, done
    rewritten, counts = deployed_copy(reference, names)
    if options.rewrites is None:
        counts = {name: count for name, count in counts.items() if count}
    return rewritten, counts, check_names((*done, *counts)) if (*done, *counts) else ()


def _exportable(rewrites: tuple[str, ...]) -> tuple[str, ...]:
    names = check_names(rewrites)
    others = [name for name in names if name not in EXPORTED]
    if others:
        raise ValueError(
            f'rewrites={others} are of PyTorch alone and change nothing in an exported file; '
            f'choose from {", ".join(EXPORTED)}'
        )
    return names


def _describe(
    cfg: Config,
    model: nn.Module,
    loaded: dict[str, Any],
    checkpoint: Path,
    model_format: str,
    options: Options,
) -> ModelDescription:
    """The description, but for size, stride and rewrites."""
    normalisation = Normalisation.of(model)
    classes, palette = _classes(cfg, loaded, getattr(model, 'num_classes', 0))
    return ModelDescription(
        format=model_format,
        size=(0, 0),
        dynamic_batch=options.dynamic_batch,
        preprocessing_inside=options.preprocessing,
        argmax_inside=options.argmax,
        mean=normalisation.mean,
        std=normalisation.std,
        to_rgb=normalisation.to_rgb,
        classes=classes,
        palette=palette,
        stride=None,
        rewrites=(),
        source_sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        version=__version__,
    )


def _classes(
    cfg: Config, loaded: dict[str, Any], count: int
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and colours: of the checkpoint, of the test set's class, or numbers and greys."""
    dataset_cfg = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    with DATASETS.switch_scope_and_registry(None) as registry:  # of the default scope
        dataset = registry.get(dataset_cfg['type']) if dataset_cfg else None
    for meta in (
        (loaded.get('meta') or {}).get('dataset_meta'),
        dataset_cfg.get('metainfo'),
        getattr(dataset, 'METAINFO', None),
    ):
        if meta and len(meta.get('classes') or ()) == len(meta.get('palette') or ()) == count:
            palette = tuple((int(r), int(g), int(b)) for r, g, b in meta['palette'])
            return tuple(map(str, meta['classes'])), palette
    greys = [255 * i // max(count - 1, 1) for i in range(count)]
    return tuple(f'class {i}' for i in range(count)), tuple((g, g, g) for g in greys)


def _write(graph: Graph, path: Path, info: ModelDescription, tensorrt: bool) -> Path:
    program = trace(graph, info.size, info.dynamic_batch)
    WRITERS[info.format](program, path, OUTPUTS[info.argmax_inside])
    if tensorrt and info.format == 'onnx':
        from mmseg_repvgg.deploy.tensorrt import check_tensorrt

        check_tensorrt(path)
    info.write(path)
    return path


def _verify(cfg: Config, path: Path, reference: nn.Module, options: Options) -> list[Match]:
    image, name = sample_image(cfg, ModelDescription.read(path).size)
    return verify(path, reference, image, name, options.tolerance, options.agreement)


def _move(written: Path, out: Path) -> None:
    """Put all files of an export in their place, the model itself last.

    All are on disk before, and an older model goes first: who is stopped between them leaves no
    model beside the description of another.
    """
    files = [file for file in written.parent.iterdir() if file.is_file() and file != written]
    with ExitStack() as stack:
        for file in (written, *files):  # left in the opposite order
            temporary = stack.enter_context(atomic_file(out.with_name(file.name)))
            os.replace(file, temporary)
            with temporary.open('rb') as stream:
                os.fsync(stream.fileno())
        Path(os.path.realpath(out)).unlink(missing_ok=True)
