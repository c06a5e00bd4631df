"""Build a deployed model, which loads a fused checkpoint, from the training config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from mmseg_repvgg.checkpoint.loading import accept_training_weights
from mmseg_repvgg.reparam.rewrites import apply_rewrites


@MODELS.register_module(name='DeployedModel')
def build_deployed(
    of: str, rewrites: Sequence[str] = ('branches', 'batchnorm'), **model: Any
) -> nn.Module:
    """Build a model in training form and rewrite it, ready for the weights of a fused checkpoint.

    Weights in training form load as well; they are rewritten while loading.

    In a config it replaces the model's type; all other keys stay where users (and
    ``--cfg-options``) expect them::

        model = dict(type='DeployedModel', of='mmseg.EncoderDecoder', rewrites=['branches'], ...)

    Args:
        of: Type of the model in training form, with its scope: ``mmseg.EncoderDecoder``.
        rewrites: Names of the rewrites, as in :data:`mmseg_repvgg.reparam.REWRITES`.
        **model: All other settings of the model.

    Returns:
        The rewritten model, in eval mode.

    Raises:
        ValueError: As :func:`mmseg_repvgg.reparam.apply_rewrites`.
    """
    settings = dict(type=of, **model)
    built: Any = MODELS.build(settings)
    apply_rewrites(built, rewrites)
    built.training_form, built.rewrites = partial(MODELS.build, settings), tuple(rewrites)
    accept_training_weights(built)
    built.eval()
    return built


def deployed_config(model: dict[str, Any], scope: str, rewrites: Sequence[str]) -> dict[str, Any]:
    """The model settings that build the deployed form of ``model``, without pretrained weights.

    Args:
        model: Settings of the training form.
        scope: The config's default scope, for a type without one.
        rewrites: Names of the rewrites.
    """
    of = model['type'] if '.' in model['type'] else f'{scope}.{model["type"]}'
    rest = {key: value for key, value in model.items() if key not in ('type', 'pretrained')}
    if 'backbone' in rest:  # timm's would download pretrained weights
        rest['backbone'] = {k: v for k, v in rest['backbone'].items() if k != 'pretrained'}
    return dict(type='DeployedModel', of=of, rewrites=list(rewrites), **rest)
