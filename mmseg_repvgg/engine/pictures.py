"""PictureBackend: writes drawn predictions into a folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend


@VISBACKENDS.register_module()
class PictureBackend(BaseVisBackend):
    """Write each image as ``save_dir/<name of the image>.png``.

    Further images of the same name, from other folders, get ``_2``, ``_3`` and so on.

    mmengine's ``LocalVisBackend`` writes ``save_dir/vis_data/vis_image/test_a.jpg_0.png``.

    Args:
        save_dir: The folder, which exists.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)
        self._count: Counter[str] = Counter()  # of the images of a name

    def _init_env(self) -> None:
        """Do nothing: the folder exists."""

    @property
    def experiment(self) -> PictureBackend:
        """The backend itself."""
        return self

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Write an image (H, W, 3), RGB, that mmseg's hook has named ``test_a.jpg``."""
        stem = Path(name.removeprefix('test_')).stem
        self._count[stem] += 1
        number = f'_{self._count[stem]}' if self._count[stem] > 1 else ''
        file = Path(self._save_dir, f'{stem}{number}.png')
        if not cv2.imwrite(str(file), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise OSError(f'{file} cannot be written')
