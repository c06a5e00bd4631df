"""Put a tiny RepVGG into every config that mmseg ships, run one of each kind, print the table.

``python -m tests.swap_backbone.families`` writes the table of docs/dropin.md to stdout. Takes
minutes.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from torch import nn

from mmseg_repvgg.reparam import compare, deployed_copy
from mmseg_repvgg.swap_backbone import CannotSwapError, swap_backbone
from mmseg_repvgg.swap_backbone.bases import find_config, load_base, shipped_configs
from tests.common import TINY, randomise_batchnorms

SIZE = (128, 128)
PASSED = 'passed'
MMDET_HEADS = ('MaskFormerHead', 'Mask2FormerHead')


@dataclass(frozen=True)
class Kind:
    """Configs of one family with the same segmentor, backbone, neck and heads."""

    family: str
    backbone: str
    heads: str


def kind_of(path: Path) -> Kind:
    model = load_base(path).get('model') or {}
    heads = [model.get('neck'), model.get('decode_head'), model.get('auxiliary_head')]
    return Kind(
        path.parent.name,
        str((model.get('backbone') or {}).get('type')).rpartition('.')[2],
        ' + '.join(_types(heads)),
    )


def _types(head: object) -> Iterator[str]:
    for part in head if isinstance(head, (list, tuple)) else [head]:
        if isinstance(part, (list, tuple)):
            yield from _types(part)
        elif part is not None:
            yield part['type']
            if 'kernel_generate_head' in part:
                yield part['kernel_generate_head']['type']


def swapped(config: str | Path, folder: Path, **options) -> Config:
    """The child config with a tiny backbone, small enough to run here."""
    out = folder / f'{Path(config).stem}.py'
    swap_backbone(config, out, **dict(dict(arch=TINY), **options))
    cfg = Config.fromfile(str(out))
    cfg.model.data_preprocessor.size = SIZE
    return cfg


def batch(num_classes: int, size: tuple[int, int] = SIZE) -> dict:
    """Two random images with labels, as a data loader gives them."""
    from mmseg.structures import SegDataSample

    meta = dict(ori_shape=size, img_shape=size, pad_shape=size, flip=False)
    samples = []
    for _ in range(2):
        label = torch.randint(num_classes, (1, size[0] // 8, size[1] // 8))
        label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
        sample = SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=label))
        samples.append(sample)
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=samples)


def train_one_step(model: nn.Module, cfg: Config) -> None:
    """Run the config's own optimizer once; loss and the backbone's gradients must be sound."""
    wrapper = dict(cfg.optim_wrapper, type='OptimWrapper')  # mixed precision needs a GPU
    wrapper.pop('loss_scale', None)
    optim_wrapper = build_optim_wrapper(model, wrapper)
    model.train()
    heads = model.decode_head
    head = heads[-1] if isinstance(heads, nn.ModuleList) else heads
    before = model.backbone.stage_1[0].branch_3x3.conv.weight.detach().clone()
    data = model.data_preprocessor(batch(head.num_classes), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, f'no gradient for {name}'
        assert parameter.grad.isfinite().all(), f'gradient of {name} is not finite'
    optim_wrapper.step()
    assert not torch.equal(before, model.backbone.stage_1[0].branch_3x3.conv.weight)


def check_fusing(model: nn.Module) -> None:
    """The fused model gives equal logits, raw and at the images' size; a wrong one does not.

    The raw ones in float64: heads that iterate, as K-Net's, make more than 1e-4 of the rounding of
    float32. PointRend's choice of points runs in float32 only.
    """
    randomise_batchnorms(model).double()
    fused, counts = deployed_copy(model, ['branches', 'batchnorm'])
    assert counts['branches'] == 1 + sum(model.backbone.arch.num_blocks)
    torch.set_default_dtype(torch.float64)  # of what heads draw
    try:
        images = torch.randn(1, 3, 97, 129)
        found = compare(model, fused, images)
        assert found.max_rel < 1e-10, str(found)
        wrong = copy.deepcopy(fused)
        nn.init.constant_(wrong.backbone.stem.branch_reparam.bias, 1.0)
        assert compare(model, wrong, images).max_rel > 1e-3
    finally:
        torch.set_default_dtype(torch.float32)
    logits, again = (segmented(m.float(), images.float()) for m in (model, fused))
    assert logits.shape[2:] == again.shape[2:]
    assert (logits.argmax(1) == again.argmax(1)).double().mean() > 0.999


def segmented(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits at the images' size, as in evaluation."""
    size = images.shape[2:]
    torch.manual_seed(0)  # some heads draw
    with torch.no_grad():
        meta = dict(ori_shape=size, img_shape=size, pad_shape=size, flip=False)
        return model.encode_decode(images, [meta])


def missing(config: str | Path) -> str | None:
    """What a config needs that is not installed."""
    heads = load_base(find_config(config)).model.decode_head
    by_mmdet = any(kind in MMDET_HEADS for kind in _types(heads))
    return 'mmdet' if by_mmdet and importlib.util.find_spec('mmdet') is None else None


def outcome(config: str | Path, folder: Path, **options) -> str:
    """'passed', or why the config cannot be run here."""
    lack = missing(config)
    if lack:
        return f'not run: needs {lack}'
    cfg = swapped(config, folder, **options)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    try:
        train_one_step(model, cfg)
    except NotImplementedError as error:  # as compat says it
        return f'not run: needs the compiled operator {str(error).split()[0]} of mmcv'
    check_fusing(model)
    return PASSED


@dataclass
class Row:
    """Configs of one family that fared alike."""

    family: str
    result: str
    configs: int = 0
    taken: int = 0
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        kinds = '; '.join(self.kinds)
        return f'| {self.family} | {self.configs} | {self.taken} | {kinds} | {self.result} |'


def sweep(folder: Path) -> list[Row]:
    """Swap the backbone of every config that mmseg ships, and run one config of each kind."""
    kinds = defaultdict(list)
    for path in shipped_configs():
        kinds[kind_of(path)].append(path)
    rows: dict[tuple[str, str], Row] = {}
    for kind, paths in kinds.items():
        taken, result = 0, ''
        for path in paths:
            try:
                swap_backbone(path, folder / path.name, TINY)
                taken += 1
            except CannotSwapError as error:
                result = f'refused: {error}'.partition(';')[0]
        if taken:
            torch.manual_seed(0)
            result = outcome(paths[0], folder)
        row = rows.setdefault((kind.family, result), Row(kind.family, result))
        row.configs, row.taken = row.configs + len(paths), row.taken + taken
        row.kinds += (f'{kind.backbone} + {kind.heads}',)
    return list(rows.values())


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of Markdown: the counts and a row per family."""
    configs, taken = sum(r.configs for r in rows), sum(r.taken for r in rows)
    run = [r for r in rows if r.taken]
    kinds, passed = (
        sum(len(r.kinds) for r in group) for group in (run, [r for r in run if r.result == PASSED])
    )
    yield (
        f'Of {configs} configs {taken} are taken and {configs - taken} refused. Those taken are of '
        f'{kinds} kinds; one of each was run: {passed} passed, {kinds - passed} could not be '
        'run here.'
    )
    yield ''
    yield '| family | configs | taken | backbone, neck and heads | one of each kind |'
    yield '|---|---|---|---|---|'
    yield from map(str, rows)


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)  # mmengine writes to stdout how it initialized each tensor
    with tempfile.TemporaryDirectory() as folder:
        print(*table(sweep(Path(folder))), sep='\n')


if __name__ == '__main__':
    main()
