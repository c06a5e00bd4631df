"""Write a child config that replaces the backbone of any config with RepVGG."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.checkpoint.mmengine_loader import PUBLISHED
from mmseg_repvgg.models.arch import get_arch
from mmseg_repvgg.models.backbone import DilatedRepVGG
from mmseg_repvgg.registration import with_our_import
from mmseg_repvgg.swap_backbone.bases import find_config, load_base, reference
from mmseg_repvgg.swap_backbone.config_text import assignment
from mmseg_repvgg.swap_backbone.feature_maps import (
    CannotSwapError,
    FeatureMap,
    backbone_maps,
    build_backbone,
)
from mmseg_repvgg.swap_backbone.heads import changed_model
from mmseg_repvgg.swap_backbone.schedule import changed_schedule
from mmseg_repvgg.swap_backbone.stages import Stages, stages_for

PUBLISHED_WEIGHTS = 'published'
IMAGENET_MEAN = [123.675, 116.28, 103.53]
"""Image mean for the published weights: RGB, 0 to 255."""
HOOK = dict(type='RepVGGDeployHook')
CARRIED = dict(in_channels=3, norm_eval=False, with_cp=False, frozen_stages=-1)
"""Settings of a backbone that DilatedRepVGG also has, and their defaults."""
DOCSTRING = '''{raw}"""{title}.

Command: {command}
The optimizer is the base's. The paper (section 4.3) trains with SGD, weight decay 1e-4, poly 0.9
from the learning rate 0.01.
"""
'''


@dataclass(frozen=True)
class SwapReport:
    """What :func:`swap_backbone` did."""

    out: Path
    base: Path
    old: str  # type of the backbone that was replaced
    maps: tuple[tuple[FeatureMap, FeatureMap], ...]  # before, after
    notes: tuple[str, ...]

    def __str__(self) -> str:
        maps = [
            f'  {a.channels} channels, stride {a.stride} -> {b.channels}, stride {b.stride}'
            for a, b in self.maps
        ]
        notes = [f'note: {note}' for note in self.notes]
        return '\n'.join(
            [f'{self.old} of {self.base.name}:', *maps, *notes, f'wrote {self.out}'],
        )


def swap_backbone(
    config: str | os.PathLike[str],
    out: str | os.PathLike[str],
    arch: str | Mapping[str, Any],
    variant: str | None = None,
    weights: str = PUBLISHED_WEIGHTS,
) -> SwapReport:
    """Write a child of an mmseg config, with RepVGG as the backbone.

    The maps of the config's own backbone are measured, and every setting of its neck and heads that
    depends on them is changed. A setting that contradicts the measured maps is an error.

    Args:
        config: A config file, or a config of the installed mmseg by name.
        out: The config to write, ``.py``.
        arch: As in :class:`~mmseg_repvgg.models.DilatedRepVGG`.
        variant: ``full`` or ``fast`` (paper, section 4.3), or ``none`` for no dilation; by default
            strides and dilations are those of the config's own backbone.
        weights: What ``model.pretrained`` becomes: a path or URL of ImageNet weights; ``published``
            for those of mmpretrain's model zoo, if any; or ``none``.

    Raises:
        CannotSwapError: If the config cannot take the backbone; says why.
        FileNotFoundError: If there is no such config.
        ValueError: On a wrong argument.
    """
    out, path = Path(out), find_config(config)
    if out.suffix != '.py':
        raise ValueError(f'OUT {str(out)!r} must end in .py: it is a config')
    if out.resolve() == path.resolve():
        raise ValueError(f'OUT {str(out)!r} is the config itself; give another name')
    row, cfg = get_arch(arch), load_base(path)
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    settings = _backbone_of(cfg)
    replaced = build_backbone(settings)
    old = backbone_maps(replaced, settings)
    stages = stages_for(settings, old, row, variant)
    new = stages.maps(row)
    source = _source(arch, weights)
    given = [key for key in ('pretrained', 'init_cfg') if cfg.model.get(key) is not None]
    initial: dict[str, Any] = dict.fromkeys(given)
    if source is not None:
        initial['pretrained'] = source
    backbone = _backbone(settings, arch, stages)
    model = dict(initial, backbone=backbone, **changed_model(cfg.model, old, new))
    with torch.device('meta'):
        schedule, notes = changed_schedule(cfg, replaced, DilatedRepVGG(row))
    sections = dict(
        custom_imports=dict(with_our_import(cfg.get('custom_imports')), allow_failed_imports=False),
        **({'load_from': None} if cfg.get('load_from') else {}),
        model=model,
        **schedule,
        custom_hooks=_hooks(cfg),
    )
    name = f'RepVGG-{arch}' if isinstance(arch, str) else f'a RepVGG of {row.num_blocks} layers'
    header = _header(f'{path.stem} on {name}', config, out, arch, variant, weights)
    _write(out, reference(path, out), header, sections)
    notes += _model_notes(cfg, arch, source)
    maps = tuple(zip(old, new, strict=True))
    return SwapReport(out, path, settings['type'], maps, tuple(notes))


def _backbone_of(cfg: Config) -> dict[str, Any]:
    model = cfg.get('model') or {}
    if not model.get('backbone') or not model.get('decode_head'):
        raise CannotSwapError(
            f'{model.get("type", "the config")} has no backbone and decode head of its own'
        )
    if not isinstance(model['backbone'].get('type'), str):
        raise CannotSwapError(
            f"{cfg.filename} is written in mmengine's pure Python style, which no config with "
            '_base_ can inherit from; set the backbone in that file'
        )
    return dict(model['backbone'])


def _source(arch: str | Mapping[str, Any], weights: str) -> str | None:
    """Path or URL of the ImageNet weights, if any."""
    published = PUBLISHED.get(arch) if isinstance(arch, str) else None
    return {PUBLISHED_WEIGHTS: published, 'none': None}.get(weights, weights)


def _backbone(
    old: Mapping[str, Any], arch: str | Mapping[str, Any], stages: Stages
) -> dict[str, Any]:
    norm = (old.get('norm_cfg') or {}).get('type')
    backbone: dict[str, Any] = dict(
        _delete_=True,
        type='DilatedRepVGG',
        arch=arch,
        strides=stages.strides,
        dilations=stages.dilations,
        out_indices=stages.out_indices,
        norm_cfg=dict(type=norm if norm in ('BN', 'SyncBN') else 'SyncBN', requires_grad=True),
    )
    if len(stages.strides) < len(get_arch(arch).num_blocks):
        backbone['num_stages'] = len(stages.strides)
    for key, default in CARRIED.items():
        # frozen_stages counts the same only in ResNets, which have a depth
        comparable = key != 'frozen_stages' or 'depth' in old
        if comparable and old.get(key, default) != default:
            backbone[key] = old[key]
    return backbone


def _model_notes(cfg: Config, arch: str | Mapping[str, Any], source: str | None) -> list[str]:
    notes, model = [], cfg.model
    mean = (model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}).get('mean')
    if source is None:
        notes.append(f'no ImageNet weights for {arch}: the backbone is trained from scratch')
    elif list(mean or IMAGENET_MEAN) != IMAGENET_MEAN:
        notes.append(f"images have the base's mean {mean}, the weights are for {IMAGENET_MEAN}")
    if model['backbone'].get('multi_grid'):
        notes.append(f'multi_grid={model["backbone"]["multi_grid"]} has no equivalent in RepVGG')
    return notes


def _hooks(cfg: Config) -> list[Any]:
    hooks = [dict(h) for h in cfg.get('custom_hooks') or []]
    return hooks if any(h.get('type') == HOOK['type'] for h in hooks) else [*hooks, HOOK]


def _header(
    title: str, config: Any, out: Path, arch: Any, variant: str | None, weights: str
) -> str:
    words = ['mmseg-repvgg', 'swap-backbone', os.fspath(config), str(out), '--arch', str(arch)]
    if variant:
        words += ['--variant', variant]
    if weights != PUBLISHED_WEIGHTS:
        words += ['--weights', weights]
    command = shlex.join(words)
    raw = 'r' if '\\' in command else ''  # a Windows path
    return DOCSTRING.format(raw=raw, title=title, command=command)


def _write(out: Path, base: str, header: str, sections: Mapping[str, Any]) -> None:
    """Write the child; raise if it does not load."""
    out.parent.mkdir(parents=True, exist_ok=True)
    body = '\n'.join(assignment(name, value) for name, value in sections.items())
    with atomic_file(out) as temporary:
        temporary.write_text(f'{header}\n_base_ = [\n    {base},\n]\n\n{body}\n', encoding='utf-8')
        try:
            Config.fromfile(str(temporary), import_custom_modules=False)
        except RuntimeError as error:  # mmengine takes the base for a pure Python config
            raise CannotSwapError(f'no config can inherit from {base}: {error}') from error
