"""Building the model of a config and loading a checkpoint into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.checkpoint.loading import load_strictly
from mmseg_repvgg.checkpoint.reading import read_checkpoint, state_dict_of
from mmseg_repvgg.engine.config_types import type_name
from mmseg_repvgg.engine.int8_training_hook import Int8TrainingHook


def load_segmentor(cfg: Config, checkpoint: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a segmentor (training form or fused) with the weights of a checkpoint file.

    If the config has an ``Int8TrainingHook``, the weights are rounded as they were in training.

    Returns:
        The segmentor, in eval mode and float32, and the content of the checkpoint.

    Raises:
        CheckpointError: If the weights do not fit the model.
        ValueError: If it is not an mmseg segmentor.
    """
    loaded = read_checkpoint(checkpoint)
    model = build_model(cfg, state_dict_of(loaded), str(checkpoint))
    if not hasattr(model, 'encode_decode'):
        raise ValueError(
            f'model type {type_name(cfg.model)!r} of {cfg.filename} is not an mmseg segmentor; '
            'only those can be exported'
        )
    model.float()
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook) == 'Int8TrainingHook':
            settings = {
                key: value for key, value in hook.items() if key not in ('type', 'priority')
            }
            Int8TrainingHook(**settings).round_weights_of(model)
    return model, loaded


def build_model(cfg: Config, state: dict[str, Any], source: str) -> nn.Module:
    """Build the model of a config with weights, in eval mode.

    Args:
        cfg: The config.
        state: The weights.
        source: Their file, for errors.

    Raises:
        CheckpointError: If the weights do not fit the model.
    """
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    model = MODELS.build(ConfigDict(model_settings(cfg)))  # test_cfg is read by attributes
    load_strictly(model, state, source)
    model.eval()
    return model


def model_settings(cfg: Config) -> dict[str, Any]:
    """The model settings that mmengine's Runner builds from a config, without pretrained weights.

    Raises:
        ValueError: If it has no backbone.
    """
    model = cfg.get('model') or {}
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
