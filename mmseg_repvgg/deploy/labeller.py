"""What a process of :mod:`.predict_ray` does: images in, label maps and numbers of pixels out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from mmseg_repvgg.deploy.images import decode_image
from mmseg_repvgg.deploy.predict import NO_SPACE
from mmseg_repvgg.deploy.result_files import MARK, encode_image, label_image
from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.deploy.storage import Folder

LABELS = 'labels'
"""The folder of label maps."""

ROWS = pa.schema(
    dict(
        image=pa.string(),
        height=pa.int32(),
        width=pa.int32(),
        counts=pa.list_(pa.int64()),  # pixels of each class
        state=pa.string(),  # done, failed, died (its process, each time), full (the disk)
        error=pa.string(),  # why it was not segmented
    )
)
"""What workers return, a row per image."""

ATTEMPTS = 3
"""How often images are tried whose process dies."""


class Labeller:
    """Segments images in a process of its own: reads them, writes label maps, counts pixels.

    While an image is segmented, another one is read or written.

    Args:
        segmenter: The model.
        images: Where the images are.
        out: Where label maps are written.
        save_labels: Their format.
        threads: Of OpenCV.
        begin: Takes the first image of a task; returns how often the task has been begun, by other
            processes as well.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        images: Folder,
        out: Folder,
        save_labels: str,
        threads: int,
        begin: Callable[[str], int],
    ) -> None:
        cv2.setNumThreads(threads)
        self.segmenter, self.images, self.out = segmenter, images, out
        self.save_labels, self.begin = save_labels, begin
        info = segmenter.info
        self.mark = f'{MARK}: model {info.model_sha256 or info.source_sha256};'
        self.turn, self.pool = Lock(), ThreadPoolExecutor(2)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Segment the images of a task.

        Args:
            batch: Their names in the column ``item``.

        Returns:
            :data:`ROWS`.
        """
        names = batch['item'].to_pylist()
        if self.begin(names[0]) > ATTEMPTS:
            rows = [dict(image=name, state='died') for name in names]
        else:
            rows = list(self.pool.map(self._row, names))
        return pa.Table.from_pylist(rows, ROWS)

    def _row(self, name: str) -> dict[str, Any]:
        try:
            return self._segment(name)
        except Exception as error:  # whatever a decoder or a runtime raises
            is_full = isinstance(error, OSError) and error.errno in NO_SPACE
            text = ' '.join(str(error).split())
            return dict(image=name, state='full' if is_full else 'failed', error=text)

    def _segment(self, name: str) -> dict[str, Any]:
        content, info = np.frombuffer(self.images.read(name), np.uint8), self.segmenter.info
        image = decode_image(content, info.color_type)
        with self.turn:
            labels = self.segmenter(image)
        if self.save_labels != 'none':
            picture = label_image(labels, self.save_labels, info)
            self.out.write(f'{LABELS}/{name}.png', encode_image(picture, '.png', self.mark))
        height, width = labels.shape
        counts = np.bincount(labels.ravel(), minlength=len(info.classes))
        return dict(image=name, height=height, width=width, counts=counts, state='done')
