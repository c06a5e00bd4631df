"""The background: sky, grass, sidewalks and the road with its markings."""

from __future__ import annotations

import cv2
import numpy as np

from mmseg_repvgg.datasets.demo_scenes.canvas import Camera, Canvas
from mmseg_repvgg.datasets.demo_scenes.street import CLOSEST, STREET_END, Light, Street
from mmseg_repvgg.datasets.demo_scenes.textures import jitter, noise


def draw_sky(canvas: Canvas, rng: np.random.Generator, light: Light) -> None:
    """Paint a gradient and clouds that get flatter towards the horizon."""
    camera = canvas.camera
    height, width = canvas.depth.shape
    rows = np.arange(height, dtype=np.float32)[:, None, None]
    fall = np.clip(rows / camera.horizon, 0, 1)
    sky = light.sky_top + (light.sky_low - light.sky_top) * fall**1.3
    shape = noise(rng, height, width // 2, (height / 4, height / 9, height / 20, height / 50))
    shape = cv2.resize(shape, (width, height))[..., None]
    cover = np.clip((shape + 3 * light.clouds - 2.0) * 0.8, 0, 0.92) * (1 - 0.5 * fall)
    white = np.clip(
        light.sky_low * 0.5 + 0.55 - 0.12 * np.roll(shape, -height // 30, axis=0), 0.3, 1
    )
    sky = sky + cover * (white - sky)
    bottom = min(int(camera.horizon) + 2, height - 1)
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, bottom], [0, bottom]], dtype=np.float64)
    canvas.image[: bottom + 1] = sky[: bottom + 1]
    canvas.label('sky', [corners])


def _strip(camera: Camera, left: float, right: float, near: float, far: float) -> np.ndarray:
    """Return the picture outline of a ground strip, which follows the bend of the street."""
    z = np.geomspace(max(near, CLOSEST), far, 12)
    edges = [np.stack([np.full_like(z, x), np.zeros_like(z), z], axis=1) for x in (left, right)]
    return camera.project(np.concatenate([edges[0], edges[1][::-1]]))


def _on_ground(rng: np.random.Generator, x: np.ndarray, z: np.ndarray, grain: float) -> np.ndarray:
    """Return noise, (H, W, 1), in perspective on the ground, with a period of 128 grains."""
    tile = noise(rng, 128, 128, (2, 5))
    u, v = (128 * _fraction(axis * np.float32(1 / (128 * grain))) for axis in (x, z))
    return cv2.remap(tile, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)[..., None]


def _fraction(values: np.ndarray) -> np.ndarray:
    return values - np.floor(values)


def _stripe(distance: np.ndarray, width: float, pixel: np.ndarray) -> np.ndarray:
    """Return the share, (H, W, 1), of a pixel that a line covers, all lengths in metres."""
    return np.clip((width / 2 - np.abs(distance)) / pixel + 0.5, 0, 1)[..., None]


def _asphalt(rng: np.random.Generator, street: Street, camera: Camera) -> np.ndarray:
    """Return the road surface with its markings, for all ground in the picture."""
    x, z = camera.ground()
    pixel = z / camera.focal
    grain = noise(rng, x.shape[0], x.shape[1], (1, 2))[..., None]
    base = jitter(rng, np.full(3, rng.uniform(0.26, 0.36)), 0.02)
    road = base * (1 + 0.06 * grain + 0.07 * _on_ground(rng, x, z, 0.25))
    tracks = np.sin((x - street.middle) * 2 * np.pi / 1.6)[..., None]
    road *= 1 - 0.03 * tracks
    paint = np.float32(rng.uniform(0.72, 0.9)) * (1 - 0.08 * np.abs(grain))
    dashes = _fraction(z / 6 + rng.uniform(0, 1)) < rng.choice([0.5, 1.0])
    lines = _stripe(x - street.middle, 0.14, pixel) * dashes[..., None]
    for side in street.sides:
        lines = np.maximum(lines, _stripe(x - side.curb + side.sign * 0.35, 0.12, pixel) * 0.8)
    if street.crossing is not None:
        lines = lines * ((z < street.crossing - 5) | (z > street.crossing + 9))[..., None]
        zebra = _stripe(_fraction(x) - 0.5, 0.5, pixel)
        lines = np.maximum(lines, zebra * (np.abs(z - street.crossing + 2.2) < 1.5)[..., None])
    return road + lines * (paint - road)


def _paving(rng: np.random.Generator, street: Street, camera: Camera) -> np.ndarray:
    """Return sidewalk slabs with a bright curb, for all ground in the picture."""
    x, z = camera.ground()
    pixel = z / camera.focal
    slab = float(rng.choice([0.6, 0.8, 1.0]))
    tones = [[0.72, 0.58, 0.52], [0.70, 0.62, 0.50], [0.66, 0.62, 0.58]]
    base = jitter(rng, tones[rng.integers(len(tones))], 0.04)
    grain = noise(rng, x.shape[0], x.shape[1], (1,))[..., None]
    walk = base * (1 + 0.04 * grain + 0.06 * _on_ground(rng, x, z, 0.4))
    seams = [
        _stripe(slab * (_fraction(axis / slab) - 0.5), 0.06, wide)
        for axis, wide in ((x, pixel), (z, z * pixel))
    ]
    walk *= 1 - 0.45 * np.maximum(*seams) * np.clip(1.6 - z / 25, 0.25, 1)[..., None]
    for side in street.sides:
        edge = _stripe(x - side.curb - side.sign * 0.12, 0.26, pixel)
        walk = walk + edge * (np.clip(base + 0.16, 0, 0.9) - walk)
    return walk


def draw_ground(canvas: Canvas, rng: np.random.Generator, street: Street, light: Light) -> None:
    """Paint grass to the horizon, the sidewalks, the road and a side street."""
    camera = canvas.camera
    x, z = camera.ground()
    near, far = camera.focal * camera.eye / (camera.height + 4 - camera.horizon), STREET_END + 30
    grass = jitter(
        rng, [[0.44, 0.58, 0.20], [0.52, 0.58, 0.26], [0.38, 0.54, 0.18]][rng.integers(3)], 0.03
    )
    blades = noise(rng, x.shape[0], x.shape[1], (1, 2))[..., None]
    grass = grass * (1 + 0.09 * blades + 0.16 * _on_ground(rng, x, z, 0.5))
    road, walk = _asphalt(rng, street, camera), _paving(rng, street, camera)
    left, right = street.sides
    surfaces = [('terrain', grass, [_strip(camera, -400.0, 400.0, near, 400.0)])]
    for side in street.sides:
        strip = _strip(camera, side.walk, side.garden, near, far)
        kerb = _strip(camera, side.curb, side.curb + side.sign * 0.3, near, far)
        surfaces.append(('sidewalk', walk, [strip, kerb]))
    lanes = [_strip(camera, left.curb, right.curb, near, far)]
    if street.crossing is not None:
        pavement = _strip(camera, -60, 60, street.crossing - 2.5, street.crossing + 9.5)
        surfaces.append(('sidewalk', walk, [pavement]))
        lanes.append(_strip(camera, -60, 60, street.crossing, street.crossing + 7))
    surfaces.append(('road', road, lanes))
    shine = light.on(np.array([0.0, 1.0, 0.0])) * _house_shadow(rng, street, light, x, z)
    depth = np.zeros_like(canvas.depth)
    depth[camera.first_ground :] = z
    for name, texture, outlines in surfaces:
        paint = np.zeros_like(canvas.image)
        paint[camera.first_ground :] = texture * shine
        for outline in outlines:
            canvas.fill(outline, paint)
        canvas.label(name, outlines, depth)


def _house_shadow(
    rng: np.random.Generator, street: Street, light: Light, x: np.ndarray, z: np.ndarray
) -> np.ndarray:
    """Return the brightness, (H, W, 1), of the ground, darker in the shadow of the houses."""
    side = street.sides[0 if light.sun[0] < 0 else 1]
    reach = side.front - side.sign * rng.uniform(1.5, 9.0)
    edge = reach + 0.5 * np.sign(np.sin(z / rng.uniform(2, 5) + rng.uniform(0, 6)))
    inside = np.clip((x - edge) * side.sign / 0.4 + 0.5, 0, 1)[..., None]
    return (1 - 0.9 * light.direct * inside).astype(np.float32)
