"""Surfaces of the demo scenes: noise, leaves, facades. All are RGB images from 0 to 1."""

from __future__ import annotations

import cv2
import numpy as np

# Wall colours: plaster, brick and a concrete as grey as asphalt.
_WALLS = np.array(
    [
        [0.82, 0.76, 0.62], [0.78, 0.68, 0.50], [0.72, 0.58, 0.48], [0.45, 0.45, 0.46],
        [0.60, 0.33, 0.26], [0.52, 0.30, 0.25], [0.68, 0.47, 0.38], [0.80, 0.62, 0.55],
    ],
    dtype=np.float32,
)  # fmt: skip


def noise(
    rng: np.random.Generator, height: int, width: int, grains: tuple[float, ...]
) -> np.ndarray:
    """Return smooth noise, (height, width), of mean 0 and about unit spread.

    Args:
        rng: source of the numbers.
        height: in pixels.
        width: in pixels.
        grains: sizes, in pixels, of the blotches that are summed.
    """
    total = np.zeros((height, width), dtype=np.float32)
    for grain in grains:
        shape = (int(np.ceil(height / grain)) + 1, int(np.ceil(width / grain)) + 1)
        layer = rng.standard_normal(shape, dtype=np.float32)
        if grain > 1:
            layer = cv2.resize(layer, (width, height), interpolation=cv2.INTER_LINEAR)
        total += layer[:height, :width]
    return total / np.float32(np.sqrt(len(grains)))


def jitter(rng: np.random.Generator, colour: object, spread: float) -> np.ndarray:
    """Return the RGB colour with a little of its brightness and hue changed."""
    shift = rng.normal(0, spread) + rng.normal(0, spread / 3, size=3)
    return np.clip(np.asarray(colour) + shift, 0.02, 0.98).astype(np.float32)


def muted(rng: np.random.Generator) -> np.ndarray:
    """Return a random RGB colour, muted like most paint and cloth."""
    colour = rng.uniform(0.06, 0.9, size=3)
    return (colour + rng.uniform(0.1, 0.6) * (colour.mean() - colour)).astype(np.float32)


def leaves(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    """Return the brightness, (height, width, 1), of leaves ``unit`` pixels large."""
    clumps = noise(rng, height, width, (6 * unit, 14 * unit))
    fine = noise(rng, height, width, (1, 2 * unit))
    return np.clip(1 + 0.22 * clumps + 0.30 * fine, 0.25, 1.9)[..., None]


def _panes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return the colours, (count, 3), of window panes: mostly dark, some curtained, few lit."""
    kinds = np.array([[0.16, 0.20, 0.25], [0.62, 0.62, 0.60], [0.88, 0.76, 0.45]])
    colours = kinds[rng.choice(3, size=count, p=[0.72, 0.20, 0.08])]
    shift = rng.normal(0, 0.05, size=(count, 1)) + rng.normal(0, 0.015, size=(count, 3))
    return np.clip(colours + shift, 0.03, 0.95).astype(np.float32)


def _bricks(wall: np.ndarray, scale: float, light: float) -> None:
    """Draw courses of bricks into a wall, (h, w, 3), at ``scale`` pixels per metre."""
    course = max(round(0.25 * scale), 3)
    brick = 2 * course
    wall[::course] *= light
    for row in range(0, wall.shape[0], course):
        offset = (row // course % 2) * course
        wall[row : row + course, offset::brick] *= light


def _windows(
    rng: np.random.Generator, wall: np.ndarray, floor: int, bay: int, scale: float
) -> None:
    """Draw rows of framed windows with sills, one row a floor and one window a bay."""
    h, w = wall.shape[:2]
    high, wide = int(floor * rng.uniform(0.48, 0.62)), int(bay * rng.uniform(0.45, 0.68))
    frame = jitter(rng, [0.9, 0.9, 0.88] if rng.random() < 0.7 else [0.25, 0.22, 0.2], 0.04)
    rim = max(int(0.09 * scale), 1)
    rows = range((floor - high) // 2, h - floor - high // 2, floor)
    columns = range((bay - wide) // 2, w - wide, bay)
    panes = iter(_panes(rng, len(rows) * len(columns)))
    for top in rows:
        sill = top + high + rim
        for left in columns:
            middle = left + wide // 2
            wall[top - rim : sill, left - rim : left + wide + rim] = frame
            wall[top : top + high, left : left + wide] = next(panes)
            wall[top : top + high, middle : middle + rim] = frame
            wall[sill : sill + rim, left - rim : left + wide + rim] *= 0.6


def _shop_front(rng: np.random.Generator, wall: np.ndarray, floor: int, scale: float) -> None:
    """Replace the lowest floor of a wall by shop windows below a sign."""
    height, width = wall.shape[:2]
    top, board = height - floor, max(floor // 5, 1)
    wall[top : top + board] = muted(rng)
    wall[top + board :] *= 0.7
    bay = max(int(rng.uniform(2.4, 3.4) * scale), 4)
    frame = max(int(0.2 * scale), 1)
    columns = range(frame, width - frame, bay)
    glass = slice(top + floor // 4, height - max(floor // 8, 1))
    for left, pane in zip(columns, _panes(rng, len(columns)), strict=True):
        wall[glass, left : left + bay - 2 * frame] = pane


def facade(rng: np.random.Generator, length: float, height: float, scale: float) -> np.ndarray:
    """Return the front of a building, (height, length) metres at ``scale`` pixels per metre.

    Windows above a shop front or a plinth, in a wall of plaster, brick or concrete panels.
    """
    h, w = max(int(height * scale), 8), max(int(length * scale), 8)
    colour = jitter(rng, _WALLS[rng.integers(len(_WALLS))], 0.03)
    wall = colour * (1 + 0.05 * noise(rng, h, w, (1, 3 * scale))[..., None])
    floor = max(int(rng.uniform(2.7, 3.4) * scale), 6)
    bay = max(int(rng.uniform(1.9, 3.0) * scale), 5)
    material = rng.integers(3)
    if material == 1:
        _bricks(wall, scale, 1.12 if colour.mean() < 0.5 else 0.86)
    elif material == 2:  # the joints of concrete panels
        wall[::floor] *= 0.75
        wall[:, ::bay] *= 0.80
    _windows(rng, wall, floor, bay, scale)
    if rng.random() < 0.5:
        _shop_front(rng, wall, min(floor, h // 2), scale)
    else:
        wall[h - max(int(0.7 * scale), 1) :] *= 0.72
    wall[: max(int(0.25 * scale), 1)] *= 0.7
    return np.clip(wall, 0, 1)
