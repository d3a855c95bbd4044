"""What thorax and abdomen share: skin, fat and muscle, spine, ribs, and the table below."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from voxray.phantoms.canvas import Canvas
from voxray.phantoms.shapes import (
    Array,
    Solid,
    Wobble,
    capsule,
    column,
    common,
    ellipsoid,
    grown,
    half_space,
    joined,
    without,
)

FAT_HU, MUSCLE_HU, BLOOD_HU, FLUID_HU = -100.0, 55.0, 42.0, 8.0


@dataclass(frozen=True)
class Build:
    """A patient's size: half-axes in mm from side to side and from front to back, and the layers of the wall."""

    half_width_mm: float
    half_depth_mm: float
    fat_mm: float
    spine_y_mm: float
    """Where the centre of the vertebral bodies lies behind the middle of the trunk."""

    @staticmethod
    def draw(rng: np.random.Generator) -> Build:
        """A patient from slim to stout."""
        stout = rng.uniform(0, 1)
        depth = 100 + 10 * stout + rng.uniform(-4, 4)
        return Build(146 + 13 * stout + rng.uniform(-4, 4), depth, 6 + 12 * stout, 0.40 * depth)


class Wall(NamedTuple):
    """The trunk from outside to inside."""

    body: Solid
    muscle: Solid
    cavity: Solid


def draw_wall(build: Build, rng: np.random.Generator, *, wall_mm: float) -> Wall:
    """The layers of the trunk; `wall_mm` is the thickness of muscles and ribs."""
    wobble = Wobble.draw(rng, amplitude_mm=1.5, length_mm=120)
    a, b, fat = build.half_width_mm, build.half_depth_mm, build.fat_mm
    body = column((0, 0), (a, b), power=2.35, wobble=wobble)
    muscle = column(
        (0, 1.0), (a - 1.3 * fat, b - fat), power=2.3, wobble=Wobble.draw(rng, amplitude_mm=1.2, length_mm=50)
    )
    inner = (a - 1.3 * fat - wall_mm, b - fat - wall_mm)
    cavity = column((0, -4), inner, power=2.2, wobble=Wobble.draw(rng, amplitude_mm=1.0, length_mm=80))
    return Wall(body, muscle, cavity)


def paint_wall(canvas: Canvas, wall: Wall, build: Build, rng: np.random.Generator) -> None:
    """Skin, fat with its septa, muscles with fat between them, and the table that the patient lies on."""
    _paint_table(canvas, build, rng)
    canvas.paint_layers(wall.body, ((0.0, 15.0), (2.0, FAT_HU)))
    clefts = Wobble.draw(rng, amplitude_mm=1.0, length_mm=26, count=5)

    def muscle(x: Array, y: Array, z: Array) -> Array:
        # Clefts follow the wall: they are long along z, and thin where the field changes sign.
        gap = np.abs(clefts(x, y, z * np.float32(0.35)))
        return np.float32(MUSCLE_HU) - np.float32(115) * np.exp(-np.square(gap / np.float32(0.16)))

    canvas.paint(wall.muscle, muscle)
    _paint_back(canvas, build)


def _paint_back(canvas: Canvas, build: Build) -> None:
    """The two long muscles beside the spinous processes, and the fat between them."""
    y = build.spine_y_mm + 36
    for side in (-1, 1):
        sheath = column((side * 27, y), (26, 15), power=2.4)
        canvas.paint_layers(sheath, ((-1.5, FAT_HU), (0.0, MUSCLE_HU)))


def _paint_table(canvas: Canvas, build: Build, rng: np.random.Generator) -> None:
    """A curved shell with foam inside."""
    height = build.half_depth_mm + rng.uniform(3, 8)
    outer = common(
        ellipsoid((0, height - 300, 0), (520, 330, 1e5)),
        half_space((0, height - 2, 0), (0, -1, 0)),
    )
    shell = Solid(outer.distance, (-1e4, height - 2, -1e4), (1e4, height + 40, 1e4))
    canvas.paint_layers(shell, ((0.0, -250.0), (3.0, -930.0)))


@dataclass(frozen=True)
class Spine:
    """Vertebrae one above the other along a gently curved line."""

    heights_mm: tuple[float, ...]
    """The middle of each vertebral body on z."""
    pitch_mm: float
    width_mm: float
    y_mm: float
    bend: tuple[float, float, float]
    """Side bend in mm, its wavelength's phase, and the curve from front to back in mm."""

    @staticmethod
    def draw(rng: np.random.Generator, build: Build, *, pitch_mm: float, width_mm: float, reach_mm: float) -> Spine:
        """Vertebrae that fill -reach to +reach on z."""
        first = -reach_mm - rng.uniform(0, pitch_mm)
        heights = tuple(np.arange(first, reach_mm + pitch_mm, pitch_mm).tolist())
        bend = (rng.uniform(0, 4), rng.uniform(0, 2 * np.pi), rng.uniform(-6, 6))
        return Spine(heights, pitch_mm, width_mm, build.spine_y_mm, bend)

    def middle(self, z: float) -> tuple[float, float]:
        """x and y of the middle of the vertebral body at a height."""
        side, phase, curve = self.bend
        return side * float(np.sin(z / 70 + phase)), self.y_mm + curve * (1 - (z / 110) ** 2) * 0.7


def paint_spine(canvas: Canvas, spine: Spine, rng: np.random.Generator, *, label: int) -> None:
    """Vertebral bodies with a dense shell, discs, the canal and its ring of bone, and the processes."""
    for z in spine.heights_mm:
        x, y = spine.middle(z)
        _paint_vertebra(canvas, spine, (x, y, z), marrow_hu=rng.uniform(200, 260), label=label)


def _paint_vertebra(
    canvas: Canvas, spine: Spine, middle: tuple[float, float, float], *, marrow_hu: float, label: int
) -> None:
    x, y, z = middle
    w, pitch = spine.width_mm, spine.pitch_mm
    half, cortex = 0.40 * pitch, 430.0
    canal_y = y + 0.72 * w + 8.5
    disc = column((x, y), (w - 1, 0.70 * w), bottom=z + half - 1, top=z + pitch - half + 1)
    canvas.paint(disc, 85.0)
    canal = column((x, canal_y), (10.5, 8.5), bottom=z - pitch / 2, top=z + pitch / 2)
    ring = without(column((x, canal_y + 1), (17.5, 14.5), bottom=z - half, top=z + 0.6 * half), canal)
    canvas.paint(common(ring, half_space((x, y, 0), (0, -1, 0))), 330.0, label=label)
    for side in (-1, 1):
        across = capsule((x + side * 12, canal_y + 3, z), (x + side * (w + 15), canal_y + 13, z + 3), (5.5, 4.0))
        canvas.paint_layers(across, ((0.0, cortex), (2.2, marrow_hu)), label=label)
    spinous = capsule((x, canal_y + 10, z), (x, canal_y + 27, z - 0.5 * pitch), (3.4, 3.8), tall=1.8)
    canvas.paint_layers(spinous, ((0.0, cortex - 50), (1.8, marrow_hu)), label=label)
    # The waist of the body, a few mm narrower in the middle than at its end plates.
    body = joined(
        column((x, y), (w - 2, 0.72 * w - 1.5), power=2.2, bottom=z - half, top=z + half),
        column((x, y), (w, 0.72 * w), power=2.2, bottom=z + half - 4, top=z + half),
        column((x, y), (w, 0.72 * w), power=2.2, bottom=z - half, top=z - half + 4),
        smooth_mm=4,
    )
    body = without(body, grown(canal, 1.0))
    canvas.paint_layers(body, ((0.0, cortex), (1.8, marrow_hu)), label=label)
    canvas.paint(canal, 28.0)
    canvas.paint(column((x, canal_y), (5.5, 4.5), bottom=z - pitch / 2, top=z + pitch / 2), 40.0)


def rib_path(cavity: Solid, spine: Spine, *, z: float, side: int, drop_mm: float, reach_deg: float) -> np.ndarray:
    """Points along one rib, from its vertebra around the cavity to the front; it falls by `drop_mm`."""
    x, y = spine.middle(z)
    (low_x, low_y, _), (high_x, high_y, _) = cavity.low, cavity.high
    a, b, middle_y = (high_x - low_x) / 2 + 2, (high_y - low_y) / 2 + 2, (low_y + high_y) / 2
    angles = np.radians(np.linspace(24, reach_deg, 26))
    share = np.linspace(0, 1, angles.size)
    # The superellipse of the cavity's wall, from the back (0 degrees) to the front (180).
    s, c = np.sin(angles), np.cos(angles)
    radius = ((s / a) ** 2.2 + (np.abs(c) / b) ** 2.2) ** (-1 / 2.2)
    around = np.stack([side * radius * s, middle_y + radius * c, z - drop_mm * share**1.3], axis=1)
    start = np.array([[x + side * (spine.width_mm - 1), y + 0.6 * spine.width_mm, z + 4]])
    return np.concatenate([start, around])


def paint_rib(canvas: Canvas, path: np.ndarray, *, label: int | None, cartilage_share: float) -> None:
    """A rib with a dense shell around marrow; the front part of it is cartilage."""
    bony = round(len(path) * (1 - cartilage_share))
    pieces = list(pairwise(path))
    for index, (start, end) in enumerate(pieces):
        solid = capsule(start, end, (3.9, 3.9), tall=1.55)
        if index < bony:
            canvas.paint(solid, 520.0, label=label)
        else:
            canvas.paint(solid, 105.0)
    for start, end in pieces[:bony]:
        canvas.paint(capsule(start, end, (2.1, 2.1), tall=1.9), 150.0)
