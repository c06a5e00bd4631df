"""Samples the light and the layout of the street, in metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmseg_repvgg.datasets.demo_scenes.textures import jitter

STREET_END = 110.0  # depth at which the street stops
CLOSEST = 1.5  # nearest depth of anything that is drawn


@dataclass(frozen=True)
class Light:
    """Where the light comes from."""

    sun: np.ndarray  # unit vector (x, y, z) from the street to the sun
    direct: float  # strength of the sun relative to the light of the sky, 0 to about 0.5
    sky_top: np.ndarray  # RGB of the sky high up
    sky_low: np.ndarray  # RGB of the sky at the horizon, and of the haze
    clouds: float  # share of the sky that is clouds, 0 to 1

    def on(self, normal: np.ndarray) -> float:
        """Return the brightness factor of a surface with this unit normal (x, y, z)."""
        facing = max(float(np.dot(normal, self.sun)), 0.0)
        return 0.92 - 0.45 * self.direct + 0.12 * float(normal[1]) + 1.2 * self.direct * facing


@dataclass(frozen=True)
class Side:
    """One side of the street; the four x values go outwards from the road."""

    sign: int  # -1 left, 1 right
    curb: float  # where the road ends
    walk: float  # where the grass along the road ends and the sidewalk begins
    garden: float  # where the sidewalk ends and the front gardens begin
    front: float  # where the buildings stand
    parking: bool  # whether cars may stand at the curb


@dataclass(frozen=True)
class Street:
    """What the ground looks like from above."""

    sides: tuple[Side, Side]  # the left and the right one
    middle: float  # x of the line between the lanes
    crossing: float | None  # depth at which a side street begins
    urban: float  # 0 (low houses with gardens) to 1 (tall houses, wall to wall)

    @property
    def crossing_end(self) -> float:
        """Depth at which the first house behind the side street stands."""
        return (self.crossing or 0.0) + 9.5

    def at_crossing(self, near: float, far: float) -> bool:
        """Return whether something from ``near`` to ``far`` would block the side street."""
        crossing = self.crossing
        return crossing is not None and near < crossing + 8 and far > crossing - 2


def sample_light(rng: np.random.Generator) -> Light:
    """Sample a time of day and the weather."""
    tops = [[0.25, 0.47, 0.82], [0.45, 0.62, 0.85], [0.62, 0.67, 0.73], [0.42, 0.45, 0.62]]
    lows = [[0.74, 0.84, 0.94], [0.86, 0.88, 0.88], [0.80, 0.82, 0.84], [0.95, 0.76, 0.58]]
    direct = [(0.2, 0.4), (0.15, 0.3), (0.0, 0.08), (0.1, 0.25)]
    kind = int(rng.choice(4, p=[0.40, 0.30, 0.25, 0.05]))
    side = rng.choice([-1, 1])
    sun = np.array([side * rng.uniform(0.4, 1), rng.uniform(0.3, 1), rng.uniform(-0.6, 0.3)])
    return Light(
        sun=sun / np.linalg.norm(sun),
        direct=float(rng.uniform(*direct[kind])),
        sky_top=jitter(rng, tops[kind], 0.04),
        sky_low=jitter(rng, lows[kind], 0.03),
        clouds=float(rng.uniform(0.1, 0.9)),
    )


def sample_street(rng: np.random.Generator) -> Street:
    """Sample the widths of road, sidewalks and gardens. The camera drives on the right."""
    lane, urban = rng.uniform(2.7, 3.4), rng.random()
    middle = -lane / 2
    sides = []
    for sign in (-1, 1):
        parking = rng.random() < 0.6
        curb = middle + sign * (lane + (2.1 if parking else 0.3))
        walk = curb + sign * (rng.uniform(1.3, 2.4) if rng.random() < 0.6 else 0.0)
        garden = walk + sign * rng.uniform(2.4, 3.8)
        front = garden + sign * (rng.uniform(0.0, 1.5) if urban > 0.5 else rng.uniform(1.5, 4.5))
        sides.append(Side(sign, curb, walk, garden, front, parking))
    crossing = rng.uniform(16, 34) if rng.random() < 0.35 else None
    return Street((sides[0], sides[1]), middle, crossing, urban)
