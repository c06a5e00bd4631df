"""The picture and its labels, drawn together: every label comes from a painted polygon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

_SUBPIXEL_BITS = 4  # cv2 takes polygon corners in 1/16 pixels
_SMALLEST_OBJECT = 6  # pixels; smaller outlines keep the label of what is behind them


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above the road, looking along the street.

    Street coordinates are metres: x to the right, y up from the road, z ahead. A street with a bend
    is a straight one with points shifted to the side by ``bend * z**2 / 2``.
    """

    width: int  # pixels
    height: int  # pixels
    focal: float  # pixels
    eye: float  # metres above the road
    horizon: float  # image row
    vanishing: float  # image column
    bend: float  # 1 / metre

    def project(self, points: Any) -> np.ndarray:
        """Return the pixels, (N, 2), of the street points, (N, 3)."""
        x, y, z = np.asarray(points, dtype=np.float64).T
        pixels = np.empty((len(z), 2))
        pixels[:, 0] = self.vanishing + self.focal * (x / z + self.bend / 2 * z)
        pixels[:, 1] = self.horizon + self.focal * (self.eye - y) / z
        return pixels

    def scale(self, z: float) -> float:
        """Return the pixels per metre at depth ``z``."""
        return self.focal / z

    def nearest(self, x: float) -> float:
        """Return the smallest depth at which the ground at ``x`` is in the picture."""
        room = self.width - self.vanishing if x > 0 else self.vanishing
        return max(self.focal * abs(x) / room, self.focal * self.eye / (self.height - self.horizon))

    @property
    def first_ground(self) -> int:
        """The first image row that lies wholly below the horizon."""
        return int(self.horizon) + 2

    def ground(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the street coordinates of the ground: x and z, both (rows, width).

        The rows are those from `first_ground` to the lower edge of the picture.
        """
        rows = np.arange(self.first_ground, self.height, dtype=np.float32)[:, None]
        z = self.focal * self.eye / (rows - self.horizon)
        columns = np.arange(self.width, dtype=np.float32)[None, :]
        x = (columns - self.vanishing) * z / self.focal - self.bend * z**2 / 2
        return x.astype(np.float32), np.broadcast_to(z, x.shape).astype(np.float32)


class Canvas:
    """What a camera sees: an image, its depth and its labelled polygons.

    ``objects`` are Cityscapes annotation objects in painter's order, ``{'label': str, 'polygon':
    [[x, y], ...]}``.
    """

    def __init__(self, camera: Camera) -> None:
        shape = (camera.height, camera.width)
        self.camera = camera
        self.image = np.zeros((*shape, 3), dtype=np.float32)  # RGB from 0 to 1
        self.depth = np.full(shape, 1e4, dtype=np.float32)  # metres, of what each pixel shows
        self.objects: list[dict[str, Any]] = []

    def fill(self, polygon: np.ndarray, paint: Any) -> None:
        """Paint a polygon with smooth edges.

        Args:
            polygon: (N, 2) pixels, also outside of the picture.
            paint: an RGB colour, or an image as large as the canvas to copy from.
        """
        box = self.box(polygon)
        if box is not None:
            paint = np.asarray(paint, dtype=np.float32)
            patch = paint[box] if paint.ndim == 3 else paint
            self._blend(box, patch, self._coverage(polygon, box))

    def fill_texture(self, quad: np.ndarray, texture: np.ndarray) -> None:
        """Paint a texture in perspective.

        Args:
            quad: (4, 2) pixels for the texture's top left, top right, bottom right and bottom left
                corner.
            texture: (h, w, 3), RGB, or (h, w, 4), RGB and opacity, from 0 to 1.
        """
        box = self.box(quad)
        if box is None:
            return
        h, w = texture.shape[:2]
        corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], dtype=np.float32)
        target = (quad - [box[1].start, box[0].start]).astype(np.float32)
        matrix = cv2.getPerspectiveTransform(corners, target)
        size = (box[1].stop - box[1].start, box[0].stop - box[0].start)
        patch = cv2.warpPerspective(texture, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        coverage = self._coverage(quad, box)
        if patch.shape[2] == 4:
            coverage, patch = coverage * patch[..., 3:], patch[..., :3]
        self._blend(box, patch, coverage)

    def shade(self, polygon: np.ndarray, strength: float, blur: float) -> None:
        """Darken the inside of a polygon; its edge is ``blur`` pixels soft."""
        margin = 3 * blur
        box = self.box(np.concatenate([polygon - margin, polygon + margin]))
        if box is not None:
            shadow = cv2.GaussianBlur(self._coverage(polygon, box), (0, 0), max(blur, 0.3))
            self.image[box] *= 1 - np.float32(strength) * shadow[..., None]

    def label(self, name: str, polygons: Sequence[np.ndarray], z: Any = None) -> None:
        """Record the outline of the union of painted polygons as labelled objects.

        Args:
            name: Cityscapes class.
            polygons: (N, 2) pixels each.
            z: depth in metres, one number or (height, width); None leaves the depth as it is.
        """
        box = self.box(np.concatenate(polygons)) if polygons else None
        if box is None:
            return
        start = np.array([box[1].start, box[0].start])
        mask = np.zeros(self.depth[box].shape, dtype=np.uint8)
        for polygon in polygons:
            cv2.fillPoly(mask, [np.rint(polygon - start).astype(np.int32)], 1)
        if z is not None:
            np.copyto(self.depth[box], z[box] if np.ndim(z) == 2 else z, where=mask.astype(bool))
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        large = [o[:, 0] + start for o in outlines if cv2.contourArea(o) >= _SMALLEST_OBJECT]
        for outline in sorted((o.tolist() for o in large), key=lambda points: points[0]):
            self.objects.append({'label': name, 'polygon': outline})

    def box(self, polygon: np.ndarray) -> tuple[slice, slice] | None:
        """Return the (rows, columns) of the picture that a polygon can touch, or None."""
        height, width = self.depth.shape
        (x0, y0), (x1, y1) = polygon.min(axis=0).tolist(), polygon.max(axis=0).tolist()
        left, top = max(int(x0) - 1, 0), max(int(y0) - 1, 0)
        right, bottom = min(int(x1) + 2, width), min(int(y1) + 2, height)
        return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None

    def _coverage(self, polygon: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
        """Return the share of each pixel of the box inside the polygon, (h, w, 1)."""
        mask = np.zeros((box[0].stop - box[0].start, box[1].stop - box[1].start), dtype=np.uint8)
        corners = (polygon - [box[1].start, box[0].start]) * 2**_SUBPIXEL_BITS
        cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        return mask[..., None] * np.float32(1 / 255)

    def _blend(self, box: tuple[slice, slice], patch: np.ndarray, coverage: np.ndarray) -> None:
        image = self.image[box]
        image += coverage * (patch - image)
