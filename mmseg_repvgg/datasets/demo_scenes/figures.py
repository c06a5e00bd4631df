"""People, trees, poles and traffic signs: upright figures, drawn flat and facing the camera."""

from __future__ import annotations

import numpy as np

from mmseg_repvgg.datasets.demo_scenes.canvas import Canvas
from mmseg_repvgg.datasets.demo_scenes.street import Light
from mmseg_repvgg.datasets.demo_scenes.textures import jitter, leaves, muted

_SKIN = [[0.90, 0.72, 0.60], [0.80, 0.60, 0.46], [0.60, 0.42, 0.30], [0.38, 0.26, 0.19]]
_HAIR = [[0.08, 0.07, 0.06], [0.28, 0.18, 0.11], [0.62, 0.48, 0.28], [0.55, 0.54, 0.52]]
_TOPS = [[0.80, 0.12, 0.45], [0.88, 0.42, 0.08], [0.50, 0.14, 0.58], [0.08, 0.55, 0.55]]
_TROUSERS = [[0.12, 0.14, 0.22], [0.10, 0.10, 0.11], [0.42, 0.37, 0.30]]
_LEAVES = [[0.24, 0.38, 0.13], [0.17, 0.32, 0.14], [0.36, 0.42, 0.16], [0.45, 0.36, 0.14]]
_POSTS = [[0.20, 0.42, 0.36], [0.17, 0.36, 0.38]]  # painted green, as old ones are
_PACK = np.array(
    [(-0.14, 1.42), (0.14, 1.42), (0.17, 1.36), (0.17, 1.02), (-0.17, 1.02), (-0.17, 1.36)]
)


def _ellipse(x: float, y: float, a: float, b: float, corners: int = 16) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + a * np.cos(angle), y + b * np.sin(angle)], axis=1)


def _limb(
    start: tuple[float, float], end: tuple[float, float], thick: float, thin: float
) -> np.ndarray:
    """Return a tapered stroke as a polygon."""
    a, b = np.array(start), np.array(end)
    along = (b - a) / (np.linalg.norm(b - a) + 1e-9)
    across = np.array([-along[1], along[0]])
    broad, narrow = across * thick / 2, across * thin / 2
    return np.stack([a + broad, b + narrow, b - narrow, a - broad])


class _FlatFigure:
    """A figure in metres, x to the right and y up from its feet, placed on the street."""

    def __init__(self, canvas: Canvas, light: Light, x: float, z: float) -> None:
        self.canvas, self.z, self.outline = canvas, z, list[np.ndarray]()
        self.foot = canvas.camera.project([(x, 0, z)])[0]
        self.scale = canvas.camera.scale(z)
        self.bright = light.on(np.array([0, 0, -1]))
        self.lit = np.sign(light.sun[0]) * light.direct

    def pixels(self, polygon: np.ndarray) -> np.ndarray:
        return self.foot + np.asarray(polygon) * [self.scale, -self.scale]

    def fill(self, polygon: np.ndarray, colour: object) -> None:
        """Paint a part and add it to the outline."""
        pixels = self.pixels(polygon)
        self.canvas.fill(pixels, np.minimum(np.asarray(colour) * self.bright, 1))
        self.outline.append(pixels)

    def shadow(self, width: float) -> None:
        """Darken the ground around the feet."""
        flat = self.canvas.camera.eye / self.z  # foreshortening along the street
        pixels = self.pixels(_ellipse(-self.lit * width, 0, width, max(width * flat, 0.03)))
        self.canvas.shade(pixels, 0.55, max(0.06 * self.scale, 0.5))


def draw_person(canvas: Canvas, rng: np.random.Generator, light: Light, x: float, z: float) -> None:
    """Draw somebody in clothes of any colour, some with a coat or a bag."""
    figure = _FlatFigure(canvas, light, x, z)
    size = rng.uniform(1.55, 1.9) / 1.75
    skin = jitter(rng, _SKIN[rng.integers(len(_SKIN))], 0.03)
    hair = jitter(rng, _HAIR[rng.integers(len(_HAIR))], 0.03)
    top = muted(rng) if rng.random() < 0.2 else jitter(rng, _TOPS[rng.integers(len(_TOPS))], 0.05)
    trousers = jitter(rng, _TROUSERS[rng.integers(len(_TROUSERS))], 0.03)
    stride, lean = rng.uniform(0.05, 0.30), rng.uniform(-0.03, 0.03)
    figure.shadow(0.45)
    for side in (-1, 1):
        foot = side * max(stride, 0.09)
        shade = 0.8 if side < 0 else 1.0
        figure.fill(size * _limb((side * 0.08, 0.85), (foot, 0.06), 0.20, 0.13), trousers * shade)
        figure.fill(size * _ellipse(foot + 0.03, 0.05, 0.11, 0.055), [0.10, 0.10, 0.11])
    swing = rng.uniform(0.02, 0.24)
    for side in (-1, 1):
        elbow = (side * (0.27 + swing * 0.3), 1.12)
        hand = (side * (0.24 + swing), 0.85)
        figure.fill(size * _limb((side * 0.19, 1.42), elbow, 0.13, 0.11), top * 0.8)
        figure.fill(size * _limb(elbow, hand, 0.11, 0.09), top * 0.8)
        figure.fill(size * _ellipse(*hand, 0.05, 0.055, 8), skin)
    hem = rng.choice([0.84, 0.78, 0.50], p=[0.5, 0.25, 0.25])  # jacket, skirt, coat
    flare = 0.20 if hem > 0.8 else rng.uniform(0.21, 0.30)
    half = np.array([(0, 1.50), (0.12, 1.50), (0.23, 1.42), (0.19, 1.05), (flare, hem), (0, hem)])
    sunny = 1 if figure.lit >= 0 else -1
    figure.fill(size * half * [sunny, 1], np.minimum(top * 1.15, 1))
    figure.fill(size * half * [-sunny, 1], top)
    if rng.random() < 0.4:
        bag = muted(rng)
        figure.fill(size * (_PACK if rng.random() < 0.5 else _ellipse(0.3, 0.75, 0.13, 0.15)), bag)
    figure.fill(size * _limb((0, 1.44), (lean, 1.58), 0.11, 0.1), skin * 0.85)
    figure.fill(size * _ellipse(lean, 1.63, 0.105, 0.135), skin)
    crown = _ellipse(lean, 1.665, 0.115, 0.11)
    figure.fill(size * (crown[:9] if rng.random() < 0.6 else crown), hair)
    canvas.label('person', figure.outline, z)


def draw_tree(
    canvas: Canvas, rng: np.random.Generator, light: Light, x: float, z: float, height: float
) -> None:
    """Draw a broad or a slim tree; trunk and leaves are vegetation, as in Cityscapes."""
    figure = _FlatFigure(canvas, light, x, z)
    figure.shadow(height * 0.18)
    bark = jitter(rng, [0.30, 0.24, 0.18], 0.03)
    slim = rng.random() < 0.25
    trunk = height * (0.15 if slim else rng.uniform(0.25, 0.38))
    figure.fill(_limb((0, 0), (0, (trunk + height) / 2), 0.05 * height, 0.03 * height), bark)
    green = jitter(rng, _LEAVES[rng.integers(len(_LEAVES))], 0.04)
    middle, radius = (trunk + height) / 2, (height - trunk) / 2
    spread = radius * (0.42 if slim else rng.uniform(0.8, 1.15))
    blobs = []
    for _ in range(9):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.66)
        size = rng.uniform(0.36, 0.52)
        blob = _ellipse(reach * np.cos(angle), reach * np.sin(angle), size, size, 22)
        blob += rng.normal(0, 0.035, size=blob.shape)
        blobs.append(figure.pixels(blob * [spread, radius] + [0, middle]))
    blobs.sort(key=lambda blob: -blob[:, 1].mean())  # the lower ones behind the upper ones
    crown = np.concatenate(blobs)
    box = canvas.box(crown)
    if box is not None:
        texture = _foliage(rng, figure, box, crown, spread) * green
        paint = np.empty_like(canvas.image)
        for i, blob in enumerate(blobs):
            paint[box] = np.minimum(texture * np.float32(0.9 + 0.2 * i / len(blobs)), 1)
            canvas.fill(blob, paint)
    canvas.label('vegetation', figure.outline + blobs, z)


def _foliage(
    rng: np.random.Generator,
    figure: _FlatFigure,
    box: tuple[slice, slice],
    crown: np.ndarray,
    spread: float,
) -> np.ndarray:
    """Return the brightness, (h, w, 1), of leaves: lighter above and towards the sun."""
    rows, columns = (np.arange(axis.start, axis.stop, dtype=np.float32) for axis in box)
    top, bottom = crown[:, 1].min(), crown[:, 1].max()
    fall = ((rows - top) / max(bottom - top, 1.0))[:, None, None]
    aside = np.clip((columns - figure.foot[0]) / max(spread * figure.scale, 1.0), -1, 1)
    unit = float(np.clip(0.09 * figure.scale, 1, 5))
    light = (1.3 - 0.6 * fall) * (1 + 0.9 * figure.lit * aside[None, :, None]) * figure.bright
    return (light * leaves(rng, len(rows), len(columns), unit)).astype(np.float32)


def _box(left: float, right: float, top: float, bottom: float = 0.0) -> np.ndarray:
    return np.array([(left, bottom), (left, top), (right, top), (right, bottom)])


def _post(figure: _FlatFigure, height: float, width: float, colour: np.ndarray) -> None:
    """Draw an upright tube, lit from one side, at least 1/42 of the picture's height thick."""
    half = max(width, figure.canvas.camera.height / 42 / figure.scale) / 2
    figure.fill(_box(-half, half, height), colour)
    shaded = _box(-half, -0.3 * half, height) if figure.lit > 0 else _box(0.3 * half, half, height)
    figure.fill(shaded, colour * 0.65)


def draw_lamp(
    canvas: Canvas, rng: np.random.Generator, light: Light, x: float, z: float, towards: int
) -> None:
    """Draw a street lamp, all of it a pole; ``towards`` (-1 or 1) is where the road is."""
    figure = _FlatFigure(canvas, light, x, z)
    figure.shadow(0.25)
    colour = jitter(rng, _POSTS[rng.integers(len(_POSTS))], 0.03)
    height = rng.uniform(4.5, 7.0)
    _post(figure, height, 0.40, colour)
    _post(figure, 0.9, 0.54, colour)
    if rng.random() < 0.6:
        arm = max(0.2, 3 / figure.scale)
        figure.fill(_limb((0, height - 0.1), (towards * 1.4, height + 0.3), arm, arm), colour)
        figure.fill(_ellipse(towards * 1.6, height + 0.3, 0.55, 0.2), np.array([0.75, 0.75, 0.70]))
    else:
        figure.fill(_ellipse(0, height, 0.28, 0.36), np.array([0.85, 0.84, 0.76]))
    canvas.label('pole', figure.outline, z)


def draw_sign(canvas: Canvas, rng: np.random.Generator, light: Light, x: float, z: float) -> None:
    """Draw a traffic sign of one of six kinds on its own pole."""
    figure = _FlatFigure(canvas, light, x, z)
    figure.shadow(0.2)
    height, r = rng.uniform(2.4, 2.9), rng.uniform(0.75, 0.95)
    _post(figure, height + r, 0.26, jitter(rng, _POSTS[rng.integers(len(_POSTS))], 0.03))
    canvas.label('pole', figure.outline, z)
    figure.outline = []
    for shape, colour in _SIGNS[rng.integers(len(_SIGNS))]:
        figure.fill(shape * r + [0, height], colour)
    canvas.label('traffic sign', figure.outline, z)


_RED, _WHITE, _BLACK = [0.78, 0.08, 0.10], [0.94, 0.94, 0.93], [0.02, 0.02, 0.03]
_BLUE, _YELLOW = [0.08, 0.25, 0.66], [0.95, 0.75, 0.10]
_TRIANGLE = np.array([(0, 1.1), (1.05, -0.75), (-1.05, -0.75)])
_DIAMOND = np.array([(0, 1.15), (1.15, 0), (0, -1.15), (-1.15, 0)])
_SQUARE, _DISC = _box(-1.0, 1.0, 1.0, -1.0), _ellipse(0, 0, 1, 1, 20)
_BAR = _box(-0.65, 0.65, 0.18, -0.18)
_ARROW = np.array(
    [(-0.5, 0.1), (0, 0.7), (0.5, 0.1), (0.17, 0.1), (0.17, -0.7), (-0.17, -0.7), (-0.17, 0.1)]
)
_SIGNS = [
    [(_DISC, _RED), (_DISC * 0.72, _WHITE), (_ellipse(0, 0, 0.22, 0.4, 10), _BLACK)],
    [(_DISC, _RED), (_BAR, _WHITE)],
    [(_TRIANGLE, _RED), (_TRIANGLE * 0.62, _WHITE), (_BAR * [0.2, 1.6], _BLACK)],
    [(_DIAMOND, _WHITE), (_DIAMOND * 0.82, _YELLOW)],
    [(_DISC, _BLUE), (_ARROW, _WHITE)],
    [(_SQUARE, _WHITE), (_SQUARE * 0.92, _BLUE), (_ARROW[:, ::-1] * 0.9, _WHITE)],
]
"""Shapes, of about unit radius, and colours of each kind of traffic sign."""
