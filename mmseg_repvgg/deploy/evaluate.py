"""mIoU of an exported model by mmseg's own Runner and metrics (tools/test.py --runtime)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS
from mmseg.models.segmentors.base import BaseSegmentor
from torch import Tensor

from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.deploy.tiling import mean_strips, pad_to_window
from mmseg_repvgg.engine import launch


@MODELS.register_module()
class ExportedModel(BaseSegmentor):
    """A segmentor of mmseg whose network is an exported file.

    It runs on whole images of the exported size, or, where the file was exported with a stride, on
    sliding windows of that size.

    Args:
        path: The file.
        align_corners: Of the resize to the size of the truth, as the decode head's.
        runtime: As in :func:`load_runtime`.
        threads: As in :func:`load_runtime`.
        batch: How many windows go into one call at most.
        test_padding: ``test_cfg`` of mmseg's ``SegDataPreProcessor``.

    Raises:
        ValueError: As :func:`load_runtime`; or if the file cannot be evaluated so: labels have no
            average over windows, and raw pixels no value that stands for padding.
    """

    def __init__(
        self,
        path: str,
        align_corners: bool,
        runtime: str | None = None,
        threads: int | None = None,
        batch: int = 8,
        test_padding: dict | None = None,
    ) -> None:
        loaded = load_runtime(path, runtime, threads)
        info = loaded.info
        if info.argmax_inside and info.stride:
            raise ValueError(
                f'{path} gives labels, which cannot be averaged over sliding windows; export it '
                'without --argmax'
            )
        if info.preprocessing_inside and test_padding:
            raise ValueError(
                f'{path} takes pixels, but the config pads normalised images '
                '(data_preprocessor.test_cfg); export it without --preprocessing'
            )
        super().__init__(data_preprocessor=_preprocessor(info, test_padding))
        self.runtime, self.info, self.batch = loaded, info, batch
        self.align_corners = align_corners
        # what pads small images: the mean pixel, which normalises to zero
        mean = np.array(info.mean, np.float32)[:: -1 if info.to_rgb else 1, None, None]
        self._mean: np.ndarray | float = mean if info.preprocessing_inside else 0

    def predict(self, inputs: Tensor, data_samples: Any = None) -> Any:
        """(N, 3, H, W) as the data preprocessor gives it -> mmseg's data samples."""
        logits = self.encode_decode(inputs, [])
        return self.postprocess_result(logits, data_samples)

    def encode_decode(self, inputs: Tensor, batch_img_metas: Any) -> Tensor:
        """(N, 3, H, W) -> logits (N, classes, H, W), one-hot if the file gives labels.

        Raises:
            ValueError: If whole images have another size than the file.
        """
        images, info = inputs.cpu().numpy(), self.info
        if info.stride is None:
            output = torch.from_numpy(np.ascontiguousarray(self.runtime(images)))
        else:
            maps = [self._windows(image, info.stride) for image in images]
            output = torch.from_numpy(np.stack(maps))
        if info.argmax_inside:
            output = F.one_hot(output.long(), len(info.classes)).permute(0, 3, 1, 2).float()
        return output.to(inputs.device)

    def _windows(self, image: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
        """(3, H, W) -> the mean logits (classes, H, W) of all windows that cover a pixel."""
        size, (height, width) = self.info.size, image.shape[1:]
        padded = pad_to_window(image, size, self._mean)
        strips = mean_strips(self.runtime, padded, size, stride, self.batch)
        return np.concatenate(list(strips), axis=1)[:, :height, :width]

    def extract_feat(self, inputs: Tensor) -> Any:
        """Not there: the network is a file."""
        raise NotImplementedError('an exported model gives logits only')

    _forward = encode_decode

    def loss(self, inputs: Tensor, data_samples: Any) -> Any:
        """Not there: the network is a file."""
        raise NotImplementedError('an exported model cannot be trained')


def test_exported(
    cfg: Config, path: str | Path, runtime: str | None = None, **options: Any
) -> dict[str, float]:
    """Evaluate an exported model on the config's test set.

    Args:
        cfg: The config of the checkpoint that was exported.
        path: The exported file.
        runtime: As in :func:`load_runtime`.
        **options: As of :func:`mmseg_repvgg.engine.launch.test`.

    Returns:
        The metrics by name, in percent.

    Raises:
        ValueError: As :class:`ExportedModel`.
        FileNotFoundError: If the model or the data are not there.
    """
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    heads = cfg.model.decode_head
    last = heads[-1] if isinstance(heads, list) else heads
    settings = dict(
        path=str(path),
        align_corners=last.get('align_corners', False),  # mmseg's default
        runtime=runtime,
        test_padding=preprocessor.get('test_cfg'),
    )
    ExportedModel(**settings)  # says what is wrong before a runner is built
    for key in ('model', 'data_preprocessor'):  # mmengine would hand the latter to the new model
        cfg.pop(key, None)
    cfg.model = dict(settings, type='ExportedModel')
    cfg.custom_hooks = [h for h in cfg.get('custom_hooks', []) if h['type'] != 'RepVGGDeployHook']
    return launch.test(cfg, None, **options)


def _preprocessor(info: ModelDescription, test_padding: dict | None) -> dict[str, Any]:
    settings: dict[str, Any] = dict(type='mmseg.SegDataPreProcessor', test_cfg=test_padding)
    if info.preprocessing_inside:
        return settings
    return dict(settings, mean=info.mean, std=info.std, bgr_to_rgb=info.to_rgb)
