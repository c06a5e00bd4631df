"""Houses along the street and the hedges of their gardens. Lengths are in metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmseg_repvgg.datasets.demo_scenes.canvas import Camera, Canvas
from mmseg_repvgg.datasets.demo_scenes.street import CLOSEST, STREET_END, Light, Street
from mmseg_repvgg.datasets.demo_scenes.textures import facade, jitter, leaves

_ROOFS = [[0.50, 0.24, 0.18], [0.32, 0.24, 0.22], [0.30, 0.31, 0.34]]
_HOUSE_DEPTH = 9.0
_HEDGES_END = 45.0  # largest depth at which a hedge begins


@dataclass(frozen=True)
class _House:
    """A house with its front along the street."""

    sign: int  # -1 on the left side of the street, 1 on the right
    x: float  # of the front
    near: float  # depth of the end that is closer to the camera
    far: float
    height: float
    free: bool  # whether the near end is visible, not hidden by another house


def _wall_depth(camera: Camera, x: float, near: float, far: float) -> np.ndarray:
    """Return the depth, (H, W), of a wall along the street at ``x``."""
    columns = np.arange(camera.width) - camera.vanishing
    z = camera.focal * x / np.where(np.abs(columns) < 1, np.copysign(1, x), columns)
    z = np.clip(z, near, far).astype(np.float32)
    return np.broadcast_to(z, (camera.height, camera.width))


def _wall(
    camera: Camera, start: tuple[float, float], end: tuple[float, float], top: float
) -> np.ndarray:
    """Return the corners in the picture of a wall from one (x, z) to another."""
    (x0, z0), (x1, z1) = start, end
    return camera.project([(x0, top, z0), (x1, top, z1), (x1, 0, z1), (x0, 0, z0)])


def _draw_house(canvas: Canvas, rng: np.random.Generator, light: Light, house: _House) -> None:
    camera, sign, x, near, far = canvas.camera, house.sign, house.x, house.near, house.far
    seen = max(near, camera.nearest(x) * 0.9)
    if seen >= far:
        return
    scale = float(np.clip(camera.scale(seen) * 0.9, 4, 14))
    look = rng.integers(2**63)  # the same for the front and the end wall
    front = facade(np.random.default_rng(look), far - near, house.height, scale)
    outline = _draw_roof(canvas, rng, light, house, front[0, 0]) if rng.random() < 0.6 else []
    if house.free:
        end = facade(np.random.default_rng(look), _HOUSE_DEPTH, house.height, scale)
        outline.append(_wall(camera, (x, near), (x + sign * _HOUSE_DEPTH, near), house.height))
        canvas.fill_texture(outline[-1], end * light.on(np.array([0, 0, -1])))
    outline.append(_wall(camera, (x, near), (x, far), house.height))
    canvas.fill_texture(outline[-1], front * light.on(np.array([-sign, 0, 0])))
    canvas.label('building', outline, _wall_depth(camera, x, near, far))


def _draw_roof(
    canvas: Canvas, rng: np.random.Generator, light: Light, house: _House, wall: np.ndarray
) -> list[np.ndarray]:
    """Draw a saddle roof with its ridge along the street; return its slope and its gable."""
    x, y, sign = house.x, house.height, house.sign
    top, ridge, eaves = y + rng.uniform(2.0, 3.5), x + sign * _HOUSE_DEPTH / 2, x - sign * 0.4
    corners = [(eaves, y, house.near), (eaves, y, house.far)]
    corners += [(ridge, top, house.far), (ridge, top, house.near)]
    slope = canvas.camera.project(corners)
    tiles = jitter(rng, _ROOFS[rng.integers(len(_ROOFS))], 0.03)
    canvas.fill(slope, tiles * light.on(np.array([-sign * 0.7, 0.7, 0])))
    corners = [(x, y, house.near), (ridge, top, house.near)]
    corners += [(x + sign * _HOUSE_DEPTH, y, house.near)]
    gable = canvas.camera.project(corners)
    canvas.fill(gable, np.minimum(wall * 1.3, 1) * light.on(np.array([0, 0, -1])))
    return [slope, gable]


def _draw_skyline(canvas: Canvas, rng: np.random.Generator, street: Street, light: Light) -> None:
    """Draw the houses at the end of the street, seen from the front."""
    x = -70.0
    while x < 70:
        width, z = rng.uniform(8, 20), STREET_END + rng.uniform(0, 20)
        height = rng.uniform(5, 12) * (1 + street.urban)
        wall = _wall(canvas.camera, (x, z), (x + width, z), height)
        if canvas.box(wall) is not None:
            texture = facade(rng, width, height, 4.0) * light.on(np.array([0, 0, -1]))
            canvas.fill_texture(wall, texture)
            canvas.label('building', [wall], z)
        x += width + (rng.uniform(0, 12) if rng.random() < 0.5 else 0)


def draw_houses(
    canvas: Canvas, rng: np.random.Generator, street: Street, light: Light
) -> list[tuple[float, float]]:
    """Draw the end of the street and the houses; return the (x, z) of the gaps between them."""
    _draw_skyline(canvas, rng, street, light)
    gaps, houses = [], []
    for side in street.sides:
        z, free, last = CLOSEST, True, (0.0, 0.0)
        while z < 0.8 * STREET_END:
            length = rng.uniform(8, 16)
            if street.at_crossing(z, z + length):
                z, free = street.crossing_end, True
            if rng.random() < 0.30 - 0.2 * street.urban:
                gaps.append((side.front + side.sign * rng.uniform(0.5, 4), z + length / 2))
                free = True
            else:
                x = side.front + side.sign * rng.uniform(0, 1)
                storeys = rng.integers(2, 4 + round(3 * street.urban))
                height = 3.1 * storeys + rng.uniform(0, 1.5)
                free = free or bool(height > last[0] or abs(x) < last[1])
                houses.append(_House(side.sign, x, z, z + length, height, free))
                free, last = False, (height, abs(x))
            z += length
            if rng.random() > street.urban:
                z, free = z + rng.uniform(1, 5), True
    for house in sorted(houses, key=lambda house: -house.near):
        _draw_house(canvas, rng, light, house)
    return gaps


def draw_hedges(canvas: Canvas, rng: np.random.Generator, street: Street, light: Light) -> None:
    """Draw hedges, with gaps between them, along the front gardens."""
    camera = canvas.camera
    for side in street.sides:
        x = side.garden + side.sign * 0.1
        pieces, z = [], camera.nearest(x) * rng.uniform(0.6, 1.0)
        while z < _HEDGES_END:
            pieces.append((z, z + rng.uniform(5, 11)))
            z = pieces[-1][1] + (rng.uniform(0.5, 4) if rng.random() < 0.6 else 0.0)
        for near, far in reversed(pieces):
            if rng.random() < 0.4 or street.at_crossing(near, far):
                continue
            height = rng.uniform(1.0, 1.8)
            scale = float(np.clip(camera.scale(max(near, camera.nearest(x))), 6, 30))
            wall = _wall(camera, (x, near), (x, far), height)
            canvas.fill_texture(wall, _hedge(rng, far - near, height, scale))
            canvas.label('vegetation', [wall], _wall_depth(camera, x, near, far))


def _hedge(rng: np.random.Generator, length: float, height: float, scale: float) -> np.ndarray:
    """Return a clipped hedge, lighter above, at ``scale`` pixels per metre."""
    h, w = int(height * scale), int(length * scale)
    fall = np.linspace(1.15, 0.6, h, dtype=np.float32)[:, None, None]
    green = jitter(rng, [0.20, 0.34, 0.13], 0.03)
    return np.clip(green * leaves(rng, h, w, scale * 0.09) * fall, 0, 1)
