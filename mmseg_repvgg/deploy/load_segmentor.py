"""Building the segmentor of a config and loading a checkpoint into it."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.checkpoint.loading import load_strictly
from mmseg_repvgg.engine.config_types import type_name


def load_segmentor(cfg: Config, state: dict[str, Any], source: str) -> nn.Module:
    """Build the model of a config (training form or fused) with weights, in eval mode, float32.

    Raises:
        CheckpointError: If the weights do not fit the model.
        ValueError: If it is not an mmseg segmentor.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    model = MODELS.build(model_settings(cfg))
    if not hasattr(model, 'encode_decode'):
        raise ValueError(
            f'model type {type_name(cfg.model)!r} of {cfg.filename} is not an mmseg segmentor; '
            'only those can be exported'
        )
    load_strictly(model, state, source)
    model.eval()
    return model.float()


def model_settings(cfg: Config) -> dict[str, Any]:
    """The model settings that mmengine's Runner builds from a config, without pretrained weights.

    Raises:
        ValueError: If it has no backbone.
    """
    model = cfg.model
    settings = model.to_dict() if hasattr(model, 'to_dict') else dict(model)
    settings.pop('pretrained', None)
    if 'backbone' not in settings:
        raise ValueError('the model of the config has no backbone: give the config of a segmentor')
    backbone = dict(settings['backbone'])
    backbone.pop('pretrained', None)
    if isinstance(backbone.get('init_cfg'), (dict, list)):
        backbone.pop('init_cfg')
    preprocessor = settings_of_preprocessor(cfg)
    if preprocessor is not None:
        settings['data_preprocessor'] = preprocessor
    return dict(settings, backbone=backbone)


def settings_of_preprocessor(cfg: Config) -> Any:
    """Settings of the data preprocessor: of the model, or else of the whole config."""
    found = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    return found.to_dict() if hasattr(found, 'to_dict') else found
