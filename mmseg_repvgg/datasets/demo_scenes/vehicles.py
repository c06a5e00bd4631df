"""Cars and buses: a side profile extruded to the vehicle's width, with details on its faces.

A vehicle has its own coordinates in metres: l forward from its middle, y up from the road, w to its
left.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mmseg_repvgg.datasets.demo_scenes.canvas import Canvas
from mmseg_repvgg.datasets.demo_scenes.street import Light
from mmseg_repvgg.datasets.demo_scenes.textures import jitter, muted

# Lengths and side profiles of cars: (l / length, y), counter-clockwise from the lower rear corner,
# with the edges bottom, front, nose, bonnet, windscreen, roof, rear window, boot, rear.
_CARS = [
    # hatchback
    (4.0, [(-0.50, 0.28), (0.50, 0.28), (0.50, 0.62), (0.46, 0.78), (0.26, 0.95), (0.08, 1.44),
           (-0.36, 1.48), (-0.47, 1.00), (-0.50, 0.90)]),
    # saloon
    (4.6, [(-0.50, 0.28), (0.50, 0.28), (0.50, 0.60), (0.47, 0.74), (0.22, 0.92), (0.06, 1.40),
           (-0.20, 1.42), (-0.36, 1.02), (-0.50, 0.96)]),
    # estate
    (4.7, [(-0.50, 0.28), (0.50, 0.28), (0.50, 0.62), (0.47, 0.76), (0.24, 0.94), (0.08, 1.43),
           (-0.42, 1.46), (-0.49, 1.02), (-0.50, 0.92)]),
    # off-roader
    (4.5, [(-0.50, 0.36), (0.50, 0.36), (0.50, 0.78), (0.47, 0.98), (0.24, 1.10), (0.11, 1.66),
           (-0.40, 1.70), (-0.48, 1.14), (-0.50, 1.04)]),
]  # fmt: skip
CAR_LENGTH = 4.6  # about
_FRONT, _WINDSCREEN, _REAR_WINDOW, _BOOT, _REAR = 1, 4, 6, 7, 8
# Edges of a bus: bottom, lower front, windscreen, destination sign, roof, upper rear, rear.
BUS_LENGTH = 10.5
_BUS = [(-0.50, 0.34), (0.50, 0.34), (0.50, 1.15), (0.497, 2.60), (0.485, 3.05), (-0.49, 3.05),
        (-0.50, 2.80)]  # fmt: skip
_BUS_FRONT, _BUS_WINDSCREEN, _BUS_SIGN, _BUS_REAR = 1, 2, 3, 6

_CAR_PAINTS = [
    [0.08, 0.08, 0.09], [0.85, 0.85, 0.84], [0.58, 0.60, 0.62], [0.55, 0.08, 0.09],
    [0.10, 0.18, 0.45], [0.24, 0.45, 0.62],
]  # fmt: skip
_BUS_PAINTS = [[0.88, 0.72, 0.15], [0.85, 0.52, 0.10]]
_GLASS = np.array([0.14, 0.18, 0.22])
_TYRE = np.array([0.06, 0.06, 0.07])
_RED = np.array([0.75, 0.06, 0.05])
_WHITE = np.array([0.95, 0.93, 0.85])
_AMBER = np.array([0.95, 0.70, 0.20])


@dataclass(frozen=True)
class Pose:
    """Where a vehicle stands on the street."""

    x: float  # of its middle
    z: float  # of its middle
    heading: float  # radians: 0 drives away from the camera, pi towards it, pi / 2 to the left

    def street(self, points: np.ndarray) -> np.ndarray:
        """Turn vehicle coordinates, (N, 3) of (l, y, w), into street coordinates, (N, 3)."""
        sine, cosine = np.sin(self.heading), np.cos(self.heading)
        axes = np.array([[-sine, 0, cosine], [0, 1, 0], [-cosine, 0, -sine]])
        return points @ axes + [self.x, 0, self.z]


class _Body:
    """An extruded profile, painted face by face from far to near; hidden faces are skipped.

    Attributes:
        faces: the visible strips between the edges, by edge: corners in the picture, clockwise from
            the upper left, and brightness.
        sides: brightness of the visible sides, by side: 1 left, -1 right.
        outline: all painted polygons, in pixels.
    """

    def __init__(
        self,
        canvas: Canvas,
        light: Light,
        pose: Pose,
        profile: np.ndarray,
        width: float,
        waist: float,
    ) -> None:
        self.canvas, self.pose, self.profile = canvas, pose, profile
        self.half, self.waist, self.top = width / 2, waist, profile[:, 1].max()
        self.faces: dict[int, tuple[np.ndarray, float]] = {}
        self.sides: dict[int, float] = {}
        self.outline: list[np.ndarray] = []
        left, right = self._street(profile, 1), self._street(profile, -1)
        strips = np.stack(
            [left, right, np.roll(right, -1, axis=0), np.roll(left, -1, axis=0)], axis=1
        )
        for edge in np.argsort(-strips[..., 2].mean(axis=1)).tolist():
            polygon = canvas.camera.project(strips[edge])
            if _is_seen(polygon):
                self.faces[edge] = polygon, light.on(_normal(strips[edge]))
        for side, points in ((1, left), (-1, right[::-1])):
            if _is_seen(canvas.camera.project(points)):
                self.sides[side] = light.on(_normal(points))

    def _street(self, points: np.ndarray, side: int) -> np.ndarray:
        """Convert points of a side, (N, 2) of (l, y), to street coordinates, (N, 3)."""
        lean = 0.2 * np.clip((points[:, 1] - self.waist) / (self.top - self.waist), 0, 1)
        return self.pose.street(np.column_stack([points, side * self.half * (1 - lean)]))

    def fill(self, polygon: np.ndarray, colour: np.ndarray) -> None:
        """Paint a polygon of the picture and add it to the outline."""
        self.canvas.fill(polygon, np.minimum(colour, 1))
        self.outline.append(polygon)

    def fill_side(self, points: object, colour: np.ndarray) -> None:
        """Paint a part, (N, 2) of (l, y), of the visible sides."""
        for side, bright in self.sides.items():
            street = self._street(np.asarray(points), side)
            self.fill(self.canvas.camera.project(street), colour * bright)

    def on_face(
        self, edge: int, box: tuple[float, float, float, float], colour: np.ndarray
    ) -> list[np.ndarray]:
        """Paint a box (left, top, right, bottom) in fractions of a face; return what is visible."""
        if edge not in self.faces:
            return []
        corners, bright = self.faces[edge]
        u, v = np.array(box)[[[0, 2, 2, 0], [1, 1, 3, 3]]]
        polygon = np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v], axis=1) @ corners
        self.fill(polygon, colour * bright)
        return [polygon]

    def wheels(self, positions: tuple[float, ...], radius: float) -> None:
        """Paint wheels on the visible sides."""
        angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius
        for along in positions:
            for share, colour in ((1.0, _TYRE), (0.58, _TYRE * 8), (0.25, _TYRE * 3)):
                self.fill_side(circle * share + [along, radius], colour)

    def underside(self, positions: tuple[float, ...], radius: float) -> None:
        """Paint the shadow below the body and the treads of the tyres, before the body itself."""
        camera, half = self.canvas.camera, self.half
        rear, front = self.profile[:2, 0] * 0.94
        ground = np.array([(rear, 0, half), (front, 0, half), (front, 0, -half), (rear, 0, -half)])
        softness = max(0.12 * camera.scale(self.pose.z), 0.5)
        self.canvas.shade(camera.project(self.pose.street(ground)), 0.8, softness)
        for along in positions:
            for outer, inner in ((half, half - 0.22), (-half, 0.22 - half)):
                corners = [(0, inner), (0, outer), (radius, outer), (radius, inner)]
                tread = np.array([(along, y, w) for y, w in corners])
                self.fill(camera.project(self.pose.street(tread)), _TYRE)

    def shell(self, paint: np.ndarray, windows: tuple[int, ...]) -> None:
        """Paint the profile's faces, some of them windows, and the sides with a dark sill."""
        for edge, (polygon, bright) in self.faces.items():
            self.fill(polygon, paint * bright)
            if edge in windows:
                self.on_face(edge, (0.07, 0.08, 0.93, 0.94), _GLASS)
        self.fill_side(self.profile, paint)
        (rear, low), (front, _) = self.profile[:2]
        sill = [(rear, low), (front, low), (front, low + 0.16), (rear, low + 0.16)]
        self.fill_side(sill, paint * 0.55)


def _is_seen(polygon: np.ndarray) -> bool:
    """Return whether a polygon faces the camera: it is then clockwise in the picture."""
    return cv2.contourArea(polygon.astype(np.float32), oriented=True) > 0


def _normal(points: np.ndarray) -> np.ndarray:
    """Return the unit normal of a polygon, (N, 3), on its clockwise side (Newell)."""
    (x, y, z), (u, v, w) = points.T, np.roll(points, -1, axis=0).T
    normal = np.array([y @ w - z @ v, z @ u - x @ w, x @ v - y @ u])
    return normal / (np.linalg.norm(normal) + 1e-9)


def draw_car(canvas: Canvas, rng: np.random.Generator, light: Light, pose: Pose) -> None:
    """Draw a car in one of four shapes and any colour, with its license plate."""
    length, shape = _CARS[rng.integers(len(_CARS))]
    length *= rng.uniform(0.94, 1.06)
    profile = np.array(shape) * [length, 1]
    paint = jitter(rng, _CAR_PAINTS[rng.integers(len(_CAR_PAINTS))], 0.03)
    body = _Body(canvas, light, pose, profile, rng.uniform(1.7, 1.9), waist=profile[7, 1] - 0.06)
    axles, radius = (-0.31 * length, 0.32 * length), 0.33
    body.underside(axles, radius)
    body.shell(paint, (_WINDSCREEN, _REAR_WINDOW))
    windscreen, roof_front, roof_rear, rear_window = profile[[4, 5, 6, 7]]
    middle = (roof_front + roof_rear) / 2 - [0.1, 0]
    foot = np.array([middle[0], windscreen[1]])
    front = [windscreen + [-0.3, 0.04], roof_front - 0.07, middle + [0.04, -0.07], foot + 0.04]
    rear = [foot + [-0.04, 0.04], middle - [0.04, 0.07], roof_rear + [0.07, -0.07]]
    body.fill_side(front, _GLASS)
    body.fill_side([*rear, rear_window + [0.22, 0.02]], _GLASS)
    body.wheels(axles, radius)
    for left in (0.03, 0.80):
        body.on_face(_BOOT, (left, 0.0, left + 0.17, 1.0), _RED)
        body.on_face(_REAR, (left, 0.02, left + 0.17, 0.30), _RED)
        body.on_face(_FRONT, (left, 0.62, left + 0.17, 0.98), _WHITE)
    body.on_face(_FRONT, (0.25, 0.60, 0.75, 0.95), paint * 0.25)
    body.on_face(_REAR, (0.03, 0.74, 0.97, 1.0), paint * 0.4)
    body.on_face(_FRONT, (0.03, 0.0, 0.97, 0.22), paint * 0.4)
    plates = body.on_face(_REAR, (0.34, 0.36, 0.66, 0.58), _WHITE)
    plates += body.on_face(_FRONT, (0.34, 0.26, 0.66, 0.48), _WHITE)
    canvas.label('car', body.outline, pose.z)
    canvas.label('license plate', plates)


def draw_bus(canvas: Canvas, rng: np.random.Generator, light: Light, pose: Pose) -> None:
    """Draw a city bus: a long box with a row of windows, a stripe and a destination sign."""
    profile = np.array(_BUS) * [BUS_LENGTH, 1]
    paint = jitter(rng, _BUS_PAINTS[rng.integers(len(_BUS_PAINTS))], 0.03)
    stripe = muted(rng)
    body = _Body(canvas, light, pose, profile, 2.5, waist=3.0)
    axles, radius = (-0.27 * BUS_LENGTH, 0.27 * BUS_LENGTH), 0.48
    body.underside(axles, radius)
    body.shell(paint, ())
    rear, front = profile[0, 0], profile[1, 0]
    panes = np.linspace(rear + 0.25, front - 0.15, 8)
    body.fill_side([(rear, 0.75), (front, 0.75), (front, 1.0), (rear, 1.0)], stripe)
    for left, right in zip(panes[:-1] + 0.06, panes[1:] - 0.06, strict=True):
        pane = [(left, 1.3), (right, 1.3), (right, 2.5), (left, 2.5)]
        body.fill_side(pane, _GLASS * rng.uniform(0.8, 1.5))
    body.wheels(axles, radius)
    body.on_face(_BUS_REAR, (0.12, 0.06, 0.88, 0.42), _GLASS)
    body.on_face(_BUS_REAR, (0.0, 0.66, 1.0, 0.76), stripe)
    body.on_face(_BUS_REAR, (0.30, 0.86, 0.70, 0.94), _TYRE)
    body.on_face(_BUS_FRONT, (0.0, 0.30, 1.0, 0.55), stripe)
    body.on_face(_BUS_WINDSCREEN, (0.05, 0.06, 0.95, 0.96), _GLASS)
    body.on_face(_BUS_SIGN, (0.12, 0.1, 0.88, 0.9), _TYRE)
    body.on_face(_BUS_SIGN, (0.22, 0.3, 0.78, 0.7), _AMBER)
    for left in (0.03, 0.83):
        body.on_face(_BUS_REAR, (left, 0.56, left + 0.14, 0.66), _RED)
        body.on_face(_BUS_FRONT, (left, 0.12, left + 0.14, 0.30), _WHITE)
    canvas.label('bus', body.outline, pose.z)
