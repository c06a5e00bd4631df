"""Evaluate an exported model with mmseg's Runner and metrics (tools/test.py --runtime)."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS
from mmseg.models.segmentors.base import BaseSegmentor
from torch import Tensor

from mmseg_repvgg.checks import check_model
from mmseg_repvgg.deploy.image_pipeline import first_test_set
from mmseg_repvgg.deploy.load_segmentor import settings_of_preprocessor
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.deploy.segmenter import logit
from mmseg_repvgg.deploy.tiling import fit_windows, mean_logits
from mmseg_repvgg.engine import launch
from mmseg_repvgg.engine.config_types import type_name

BATCH = 8
"""Largest number of windows per call."""


@MODELS.register_module()
class ExportedModel(BaseSegmentor):
    """A segmentor of mmseg whose network is an exported file.

    It runs on whole images of the exported size, or on sliding windows of that size if the file was
    exported with a stride. A file for all sizes runs on whole images of any size, or on windows
    that are shrunk to smaller images.

    Args:
        path: The file.
        align_corners: Of the decode head, for resizing logits to the size of the ground truth.
        runtime: As in :func:`load_runtime`.
        device: Device of the runtime.
        test_padding: ``test_cfg`` of mmseg's ``SegDataPreProcessor``.
        normalised: Whether the test pipeline normalises images.

    Raises:
        ValueError: As :func:`load_runtime`; or if the file gives labels for sliding windows, or
            takes pixels although the config pads or normalises images.
    """

    def __init__(
        self,
        path: str,
        align_corners: bool,
        runtime: str | None = None,
        device: str = 'cpu',
        test_padding: dict | None = None,
        normalised: bool = False,
    ) -> None:
        loaded = load_runtime(path, runtime, device=device)
        info = loaded.info
        if info.argmax_inside and info.stride:
            raise ValueError(
                f'{path} gives labels, which cannot be averaged over sliding windows; export it '
                'without --argmax'
            )
        if info.preprocessing_inside and (test_padding or normalised):
            how = (
                'normalises images in the test pipeline'
                if normalised
                else 'pads normalised images (data_preprocessor.test_cfg)'
            )
            raise ValueError(
                f'{path} takes pixels, but the config {how}; export it without --preprocessing'
            )
        preprocessor: dict[str, Any] = dict(type='mmseg.SegDataPreProcessor', test_cfg=test_padding)
        if not (info.preprocessing_inside or normalised):
            preprocessor.update(mean=info.mean, std=info.std, bgr_to_rgb=info.to_rgb)
        super().__init__(data_preprocessor=preprocessor)
        self.runtime, self.info = loaded, info
        self.align_corners = align_corners
        self.out_channels = info.num_outputs
        self.decode_head = SimpleNamespace(  # what mmseg, and the checks of the labels, read there
            threshold=info.threshold,
            num_classes=len(info.classes),
            out_channels=info.num_outputs,
            ignore_index=255,
            loss_decode=(),
        )

    def predict(self, inputs: Tensor, data_samples: Any = None) -> Any:
        """(N, C, H, W) from the data preprocessor -> mmseg's data samples."""
        return self.postprocess_result(self.encode_decode(inputs, []), data_samples)

    def encode_decode(self, inputs: Tensor, batch_img_metas: Any) -> Tensor:
        """(N, C, H, W) -> logits (N, classes, H, W), one-hot if the file gives labels.

        Raises:
            ValueError: If whole images have another size than the file, or images are too small.
        """
        images, info = inputs.cpu().numpy(), self.info
        windows = fit_windows(images.shape[2:], info)
        if windows is None:
            output = self.runtime(images)
        else:
            tiling = *windows, BATCH
            output = np.stack([mean_logits(self.runtime, image, *tiling) for image in images])
        logits = torch.from_numpy(np.ascontiguousarray(output))
        if info.argmax_inside:
            logits = self._as_logits(logits.long())
        return logits.to(inputs.device)

    def _as_logits(self, labels: Tensor) -> Tensor:
        """(N, H, W) -> logits (N, classes, H, W) that give these labels."""
        threshold = self.info.threshold
        if threshold is None:
            return F.one_hot(labels, len(self.info.classes)).permute(0, 3, 1, 2).float()
        return logit(threshold) + (2.0 * labels - 1)[:, None]

    def extract_feat(self, inputs: Tensor) -> Any:
        """Not available: the network is a file."""
        raise NotImplementedError('an exported model gives logits only')

    _forward = encode_decode

    def loss(self, inputs: Tensor, data_samples: Any) -> Any:
        """Not available: the network is a file."""
        raise NotImplementedError('an exported model cannot be trained')


def test_exported(
    cfg: Config,
    path: str | Path,
    runtime: str | None = None,
    device: str = 'cpu',
    **options: Any,
) -> dict[str, float]:
    """Evaluate an exported model on the config's test set.

    Args:
        cfg: The config of the checkpoint that was exported, which stays as it is.
        path: The exported file.
        runtime: As in :func:`load_runtime`.
        device: Device of the runtime.
        **options: See :func:`mmseg_repvgg.engine.launch.test`.

    Returns:
        The metrics by name, in percent.

    Raises:
        ValueError: As :class:`ExportedModel`.
        FileNotFoundError: If the model or the data are not there.
    """
    if options.get('tta') or options.get('launcher', 'none') != 'none':
        raise ValueError(
            'an exported model is evaluated by one process and without augmentation: --runtime '
            'cannot be combined with --tta or --launcher'
        )
    check_model(cfg)
    cfg = copy.deepcopy(cfg)
    preprocessor = settings_of_preprocessor(cfg) or {}
    heads = cfg.model.get('decode_head')
    if not heads:
        raise ValueError(
            f'model type {type_name(cfg.model)!r} of {cfg.filename} has no decode_head: only '
            'segmentors can be exported and evaluated by --runtime'
        )
    last = heads[-1] if isinstance(heads, list) else heads
    pipeline = first_test_set(cfg).get('pipeline') or ()
    settings = dict(
        path=str(path),
        align_corners=last.get('align_corners', False),  # mmseg's default
        runtime=runtime,
        device=device,
        test_padding=preprocessor.get('test_cfg'),
        normalised=any(type_name(transform) == 'Normalize' for transform in pipeline),
    )
    ExportedModel(**settings)  # raises errors before a runner is built
    for key in ('model', 'data_preprocessor'):  # mmengine would pass the latter to the new model
        cfg.pop(key, None)
    cfg.model = dict(settings, type='ExportedModel')
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [h for h in hooks if type_name(h) != 'RepVGGDeployHook']
    return launch.test(cfg, None, **options)
