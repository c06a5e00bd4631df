"""Composes a scene: camera, light, street and what stands on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from mmseg_repvgg.datasets.demo_scenes.canvas import Camera, Canvas
from mmseg_repvgg.datasets.demo_scenes.figures import draw_lamp, draw_person, draw_sign, draw_tree
from mmseg_repvgg.datasets.demo_scenes.ground import draw_ground, draw_sky
from mmseg_repvgg.datasets.demo_scenes.houses import draw_hedges, draw_houses
from mmseg_repvgg.datasets.demo_scenes.street import Light, Street, sample_light, sample_street
from mmseg_repvgg.datasets.demo_scenes.textures import jitter
from mmseg_repvgg.datasets.demo_scenes.vehicles import (
    BUS_LENGTH,
    CAR_LENGTH,
    Pose,
    draw_bus,
    draw_car,
)

_FAR = 28.0  # largest depth of trees, lamps, signs and lanes of cars


class _Thing(NamedTuple):
    """Something that stands on the street."""

    z: float
    draw: Callable[..., None]
    where: tuple[Any, ...]  # the arguments of ``draw`` after canvas, rng and light


def compose_scene(
    rng: np.random.Generator, width: int, height: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw one street scene.

    Args:
        rng: the only source of randomness; the same state gives the same scene.
        width: of the picture in pixels.
        height: of the picture in pixels.

    Returns:
        The picture, (height, width, 3), uint8, RGB, and its Cityscapes annotation objects,
        ``{'label': str, 'polygon': [[x, y], ...]}`` in painter's order.
    """
    camera = Camera(
        width=width,
        height=height,
        focal=max(height, width / 2) * rng.uniform(1.3, 1.7),
        eye=rng.uniform(1.4, 1.8),
        horizon=height * rng.uniform(0.40, 0.50),
        vanishing=width * rng.uniform(0.40, 0.60),
        bend=rng.uniform(-0.004, 0.004),
    )
    canvas, light, street = Canvas(camera), sample_light(rng), sample_street(rng)
    draw_sky(canvas, rng, light)
    draw_ground(canvas, rng, street, light)
    gaps = draw_houses(canvas, rng, street, light)
    for x, z in sorted(gaps, key=lambda gap: -gap[1]):
        draw_tree(canvas, rng, light, x, z, rng.uniform(5, 9))
    draw_hedges(canvas, rng, street, light)
    things = _furniture(rng, camera, street) + _traffic(rng, camera, street)
    things += _people(rng, camera, street)
    for thing in sorted(things, key=lambda thing: -thing.z):
        thing.draw(canvas, rng, light, *thing.where)
    if rng.random() < 0.4:
        _draw_bonnet(canvas, rng, light)
    return _develop(canvas, rng, light), canvas.objects


def _furniture(rng: np.random.Generator, camera: Camera, street: Street) -> list[_Thing]:
    """Place trees, street lamps and traffic signs along both curbs."""
    things = []
    for side in street.sides:
        x = side.curb + side.sign * max(0.45, abs(side.walk - side.curb) / 2)
        z = max(camera.nearest(x), 6.5) * rng.uniform(0.95, 1.3)
        while z < _FAR:
            kind = rng.integers(3)
            if not street.at_crossing(z, z):
                if kind == 0:
                    things.append(_Thing(z, draw_tree, (x, z, rng.uniform(4, 7.5))))
                elif kind == 1:
                    things.append(_Thing(z, draw_lamp, (x, z, -side.sign)))
                else:
                    things.append(_Thing(z, draw_sign, (x, z)))
            z += rng.uniform(2.5, 6.5) * (1 + z / 60)
    return things


def _traffic(rng: np.random.Generator, camera: Camera, street: Street) -> list[_Thing]:
    """Place cars in both lanes, at the curbs and in the side street, and usually one bus."""
    lanes = [(0.0, 0.0, 6.0, 18.0), (2 * street.middle, np.pi, 3.0, 18.0)]  # x, heading, gaps
    for side in street.sides:
        if side.parking:
            heading = 0.0 if side.sign > 0 else np.pi
            lanes.append((side.curb - side.sign * 1.05, heading, 1.2, 6.0))
    bus_lane = rng.integers(len(lanes)) if rng.random() < 0.9 else -1
    things = []
    for i, (x, heading, gap, more) in enumerate(lanes):
        z = max(camera.nearest(x), 5.0) + gap + rng.uniform(0, 12)
        draw, length = (draw_bus, BUS_LENGTH) if i == bus_lane else (draw_car, CAR_LENGTH)
        while z < _FAR:
            turn = rng.normal(0, 0.04)
            pose = Pose(x + rng.normal(0, 0.12), z + length / 2, heading + turn)
            things.append(_Thing(pose.z, draw, (pose,)))
            z += length + gap + rng.exponential(more)
            draw, length = draw_car, CAR_LENGTH
    if street.crossing is not None:
        heading = np.pi / 2 * rng.choice([-1, 1])
        pose = Pose(rng.uniform(-6, 6), street.crossing + rng.uniform(2, 5), heading)
        things.append(_Thing(pose.z, draw_car, (pose,)))
    return things


def _people(rng: np.random.Generator, camera: Camera, street: Street) -> list[_Thing]:
    """Place people on the sidewalks, and some who cross the road."""
    things = []
    for _ in range(rng.integers(8, 13)):
        side = street.sides[rng.integers(2)]
        on_walk = rng.random() < 0.85
        inner, outer = (side.walk, side.garden) if on_walk else (street.middle, side.curb)
        x = inner + (outer - inner) * rng.random()
        z = camera.nearest(x) * 1.03 + 7 * rng.random() ** 1.5
        things.append(_Thing(z, draw_person, (x, z)))
    return things


def _draw_bonnet(canvas: Canvas, rng: np.random.Generator, light: Light) -> None:
    """Draw the front of the car that carries the camera; its class is ignored in training."""
    height, width = canvas.depth.shape
    across = np.linspace(-0.05, 1.05, 24)
    rise = height * rng.uniform(0.05, 0.10)
    arch = height - rise * (1 - (2 * across - 1) ** 4 * 0.75)
    below = [[1.05 * width, height + 2], [-0.05 * width, height + 2]]
    outline = np.concatenate([np.stack([across * width, arch], axis=1), below])
    paints = [[0.10, 0.10, 0.12], [0.45, 0.46, 0.48], [0.25, 0.10, 0.10]]
    paint = jitter(rng, paints[rng.integers(len(paints))], 0.03)
    fall = np.clip((np.arange(height) - height + rise) / rise, 0, 1)[:, None, None]
    sheen = paint + (light.sky_low * 0.6 - paint) * (1 - fall) ** 2 * 0.7
    canvas.fill(outline, np.broadcast_to(sheen, canvas.image.shape))
    canvas.label('ego vehicle', [outline], 1.0)


def _develop(canvas: Canvas, rng: np.random.Generator, light: Light) -> np.ndarray:
    """Add effects of haze, lens and sensor to the picture; return it as (H, W, 3), uint8."""
    height, width = canvas.depth.shape
    haze = 1 - np.exp(-canvas.depth / np.float32(np.exp(rng.uniform(np.log(200), np.log(1200)))))
    haze[canvas.depth > 5e3] = 0
    image = canvas.image + haze[..., None] * (light.sky_low * 0.95 - canvas.image)
    blur = rng.uniform(0.25, 0.6) * height / 256
    image = cv2.GaussianBlur(image, (0, 0), max(blur, 0.2))
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in (height, width))
    vignette = 1 - rng.uniform(0.05, 0.2) * (x[None, :, None] ** 2 + y[:, None, None] ** 2) / 2
    warmth, exposure = rng.normal(0, 0.03), rng.uniform(0.9, 1.15)
    tint = exposure * np.array([1 + warmth, 1.0, 1 - warmth], dtype=np.float32)
    image = cv2.pow(np.clip(image * vignette * tint, 0, 1), rng.uniform(0.85, 1.1))
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(
        rng.uniform(0.004, 0.013)
    )
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
