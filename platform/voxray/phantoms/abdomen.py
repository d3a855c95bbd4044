"""An abdomen in the portal venous phase: organs whose densities overlap, so that place and shape must tell them."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from voxray.core.volume import Volume
from voxray.phantoms.canvas import Canvas, Tissue, levelled
from voxray.phantoms.phantom import Phantom
from voxray.phantoms.scanner import draw_grid, scan
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
    turn,
    uneven,
    without,
)
from voxray.phantoms.trunk import (
    FAT_HU,
    FLUID_HU,
    MUSCLE_HU,
    Build,
    Spine,
    Wall,
    draw_wall,
    paint_rib,
    paint_spine,
    paint_wall,
    rib_path,
)
from voxray.phantoms.vessels import grow, paint_tree, points_inside

OBJECTS: tuple[str, ...] = ()
STRUCTURES = ("liver", "spleen", "kidney_right", "kidney_left", "spine")
_LIVER, _SPLEEN, _KIDNEY_RIGHT, _KIDNEY_LEFT, _SPINE = range(1, 6)

_ARTERY_HU, _VEIN_HU = 145.0, 155.0

_SIZE_MM = (346.0, 262.0, 220.0)
_SPACING_MM = {"small": (2.1, 2.4), "large": (0.9, 1.1)}


class Belly(NamedTuple):
    """The large solids; x grows to the patient's left."""

    wall: Wall
    spine: Spine
    domes: Solid
    liver: Solid
    spleen: Solid
    kidneys: tuple[Solid, Solid]
    stomach: Solid


def draw_abdomen(rng: np.random.Generator, index: int, *, size: str) -> Phantom:
    """The `index`-th abdomen of a set."""
    grid = draw_grid(rng, index, size_mm=_SIZE_MM, spacing_mm=_SPACING_MM[size])
    build = Build.draw(rng)
    belly = _draw_belly(build, rng)
    canvas = Canvas(grid)
    paint_wall(canvas, belly.wall, build, rng)
    room = belly.wall.cavity
    canvas.paint(room, _mesentery(rng))
    _paint_lung_bases(canvas, belly)
    _paint_back_wall(canvas, belly)
    _paint_bowel(canvas, belly, rng)
    _paint_stomach(canvas, belly, rng)
    _paint_organs(canvas, belly, rng)
    paint_spine(canvas, belly.spine, rng, label=_SPINE)
    for z in belly.spine.heights_mm:
        if z > -5:
            for side in (-1, 1):
                path = rib_path(room, belly.spine, z=z + 4, side=side, drop_mm=85, reach_deg=70 + 0.55 * min(z, 100))
                paint_rib(canvas, path, label=None, cartilage_share=0.2)
    voxels = scan(canvas.voxels, grid, rng, noise_hu=rng.uniform(9, 16))
    return Phantom(Volume(voxels, grid), np.zeros((0, 6)), np.zeros(0, np.int64), canvas.labels)


def _draw_belly(build: Build, rng: np.random.Generator) -> Belly:
    wall = draw_wall(build, rng, wall_mm=12)
    spine = Spine.draw(rng, build, pitch_mm=33, width_mm=21, reach_mm=120)
    inner, half_x = grown(wall.cavity, -3.0), wall.cavity.high[0]
    top = 92 + rng.uniform(-6, 8)
    domes = joined(_dome(-half_x, top), _dome(half_x, top - rng.uniform(4, 12)), smooth_mm=10)
    under = common(inner, grown(domes, -3.5), smooth_mm=4)
    kidneys = (_kidney(-1, rng), _kidney(1, rng))
    spleen = _draw_spleen(under, kidneys[1], half_x, rng)
    liver = _draw_liver(under, kidneys[0], spine, half_x, rng)
    stomach = _draw_stomach(under, spleen, liver, rng)
    return Belly(wall, spine, domes, liver, spleen, kidneys, stomach)


def _dome(side_x: float, top: float) -> Solid:
    upper = ellipsoid((0.47 * side_x, 2, top - 62), (0.47 * abs(side_x), 76, 62))
    return joined(upper, column((0, 0), (3 * abs(side_x), 400), top=top - 70), smooth_mm=12)


def _kidney(side: int, rng: np.random.Generator) -> Solid:
    """A bean whose upper pole leans to the spine and whose notch looks forward and inward."""
    scale = rng.uniform(0.9, 1.08)
    x, y = side * (60 + rng.uniform(-3, 4)), 36 + rng.uniform(-3, 3)
    z = -18 + rng.uniform(-10, 8) + (8 if side > 0 else 0)
    lean = turn(1, side * rng.uniform(8, 14)) @ turn(2, side * rng.uniform(-35, -20))
    bean = ellipsoid(
        (x, y, z), (25 * scale, 29 * scale, 53 * scale), lean, Wobble.draw(rng, amplitude_mm=0.7, length_mm=45)
    )
    notch = ellipsoid((x - side * 26 * scale, y - 12, z), (14, 15, 20))
    return without(bean, notch, smooth_mm=6)


def _draw_spleen(under: Solid, kidney: Solid, half_x: float, rng: np.random.Generator) -> Solid:
    """A curved disc under the left ribs, behind the stomach and above the kidney."""
    scale = rng.uniform(0.95, 1.15)
    x, y, z = half_x - 35 + rng.uniform(-2, 4), 26 + rng.uniform(-4, 4), 38 + rng.uniform(-6, 6)
    tilt = turn(2, rng.uniform(-30, -15)) @ turn(0, rng.uniform(15, 30))
    disc = ellipsoid(
        (x, y, z), (29 * scale, 46 * scale, 50 * scale), tilt, Wobble.draw(rng, amplitude_mm=1.2, length_mm=55)
    )
    hollow = ellipsoid((x - 44, y - 22, z - 6), (33, 42, 60))
    return common(without(disc, hollow, grown(kidney, 3.0), smooth_mm=5), under, smooth_mm=5)


def _draw_liver(under: Solid, kidney: Solid, spine: Spine, half_x: float, rng: np.random.Generator) -> Solid:
    """The right lobe fills the space under the right dome; the left lobe thins out across the middle."""
    right = ellipsoid((-0.52 * half_x, -4, 36 + rng.uniform(-6, 6)), (0.56 * half_x, 84, 84))
    left = ellipsoid((0.10 * half_x, -46, 56), (0.52 * half_x, 36, 34), turn(1, rng.uniform(8, 20)))
    lobes = joined(right, left, smooth_mm=14)
    under_side = half_space((-30, 0, -34 + rng.uniform(-8, 8)), (0.55, 0.12, -1.0))
    back = column((spine.middle(40.0)[0] + 4, spine.y_mm - 2), (38, 40))
    hilum = ellipsoid((-22, 2, 14), (34, 20, 26), turn(2, -30))
    (x0, y0, z0), (x1, y1, z1) = kidney.low, kidney.high
    middle = ((x0 + x1) / 2 + 6, (y0 + y1) / 2 + 4, (z0 + z1) / 2)
    # The fat around the kidney, and nothing of the liver behind it.
    bed = ellipsoid(middle, ((x1 - x0) / 2 + 8, (y1 - y0) / 2 + 8, (z1 - z0) / 2 + 5))
    cut = without(common(lobes, under_side, smooth_mm=10), back, hilum, bed, smooth_mm=8)
    wobble = Wobble.draw(rng, amplitude_mm=1.2, length_mm=60)
    return common(uneven(cut, wobble), under, smooth_mm=5)


def _draw_stomach(under: Solid, spleen: Solid, liver: Solid, rng: np.random.Generator) -> Solid:
    x, z = 46 + rng.uniform(-4, 6), 46 + rng.uniform(-8, 6)
    fundus = ellipsoid((x, 0, z), (36, 38, 40), None, Wobble.draw(rng, amplitude_mm=1.5, length_mm=50))
    body = capsule((x, -22, z - 8), (18, -50, z - 66), (27, 18))
    antrum = capsule((18, -50, z - 66), (-26, -38, z - 62), (18, 13))
    whole = joined(fundus, body, antrum, smooth_mm=12)
    return common(without(whole, grown(spleen, 3.5), grown(liver, 3.0), smooth_mm=5), grown(under, -1.0), smooth_mm=4)


def _mesentery(rng: np.random.Generator) -> Tissue:
    """Fat with fine strands: small vessels run through it."""
    wide = Wobble.draw(rng, amplitude_mm=5.0, length_mm=40)
    fine = Wobble.draw(rng, amplitude_mm=1.0, length_mm=17, count=5)

    def hu(x: Array, y: Array, z: Array) -> Array:
        strand = np.exp(-np.square(fine(x, y, z) / np.float32(0.13)))
        result: Array = np.float32(FAT_HU - 4) + wide(x, y, z) + np.float32(45) * strand
        return result

    return hu


def _paint_lung_bases(canvas: Canvas, belly: Belly) -> None:
    lungs = without(grown(belly.wall.cavity, -1.5), grown(belly.domes, 1.5), column((4, 20), (34, 44)), smooth_mm=6)
    canvas.paint(_above(lungs, 0.0), -850.0)
    heart = ellipsoid((16, -34, 118), (56, 42, 36), turn(2, 35))
    canvas.paint_layers(heart, ((-3.0, FAT_HU), (0.0, _VEIN_HU)))
    shell = without(common(belly.domes, belly.wall.cavity), grown(belly.domes, -2.6))
    canvas.paint(_above(shell, 20.0), MUSCLE_HU - 5)


def _above(solid: Solid, z: float) -> Solid:
    """The part of the solid above a height; only that part of the grid is looked at."""
    part = common(solid, half_space((0, 0, z), (0, 0, -1)))
    (x0, y0, _), high = solid.low, solid.high
    return Solid(part.distance, (x0, y0, z), high)


def _paint_back_wall(canvas: Canvas, belly: Belly) -> None:
    """Psoas and the crura beside the spine, aorta on its left and vena cava on its right."""
    y = belly.spine.y_mm
    for side in (-1, 1):
        muscle = capsule((side * 26, y + 6, 8), (side * 44, y - 2, -130), (8, 21))
        canvas.paint(muscle, MUSCLE_HU)
        lateral = capsule((side * 46, y + 18, 0), (side * 58, y + 16, -130), (8, 15))
        canvas.paint(lateral, MUSCLE_HU)
        canvas.paint(capsule((side * 13, y - 12, 90), (side * 13, y - 16, 0), (5, 4), tall=2), MUSCLE_HU)
    front = y - 0.72 * belly.spine.width_mm
    canvas.paint(capsule((10, front - 13, 140), (7, front - 12, -130), (11.5, 9.5)), _ARTERY_HU)
    canvas.paint(capsule((-22, front - 26, 130), (-17, front - 9, -130), (11.5, 10.5)), _VEIN_HU)


def _paint_bowel(canvas: Canvas, belly: Belly, rng: np.random.Generator) -> None:
    """Loops of small bowel in the middle and a colon with gas and stool around them."""
    half_x, front = belly.wall.cavity.high[0], belly.wall.cavity.low[1]
    room = grown(belly.wall.cavity, -3.0)
    for _ in range(9):
        start = np.array([rng.uniform(-50, 50), rng.uniform(front + 22, -8), rng.uniform(-105, -35)])
        _paint_loop(canvas, start, room, rng)
    side_x, deep = half_x - 24, 8.0
    frame = [(-side_x, deep, -120), (-side_x, deep - 6, -62), (-side_x + 14, -34, -44), (-30, front + 24, -52)]
    frame += [(20, front + 24, -50), (side_x - 20, -32, -22), (side_x - 2, deep, -30), (side_x, deep + 8, -120)]
    for first, last in pairwise(frame):
        _paint_colon(canvas, np.array(first), np.array(last), room, rng)


def _paint_loop(canvas: Canvas, start: np.ndarray, room: Solid, rng: np.random.Generator) -> None:
    heading, radius = rng.normal(size=3), rng.uniform(9, 13)
    content = rng.uniform(15, 40)
    for _ in range(4):
        heading = heading / np.linalg.norm(heading)
        end = start + 20 * heading
        tube = common(capsule(start, end, (radius, radius * rng.uniform(0.85, 1.1))), room)
        canvas.paint_layers(tube, ((0.0, 85.0), (2.4, content)))
        start, heading = end, heading + 0.8 * rng.normal(size=3)


def _paint_colon(
    canvas: Canvas,
    start: np.ndarray,
    end: np.ndarray,
    room: Solid,
    rng: np.random.Generator,
) -> None:
    """A piece of colon: wall, stool, and gas that rises to the front."""
    haustra = Wobble.draw(rng, amplitude_mm=1.6, length_mm=24)
    tube = capsule(start, end, (17.0, 17.0))
    bowel = uneven(tube, haustra)
    stool = Wobble.draw(rng, amplitude_mm=70.0, length_mm=13, count=6)
    level = float(np.mean([start[1], end[1]])) + rng.uniform(-8, 6)
    content = levelled(level, -960.0, lambda x, y, z: np.float32(-40) + stool(x, y, z))
    canvas.paint_layers(common(bowel, room), ((0.0, 75.0), (2.5, content)))


def _paint_stomach(canvas: Canvas, belly: Belly, rng: np.random.Generator) -> None:
    """Wall, fluid, and a bubble with a level: the patient lies on the back."""
    content = levelled(rng.uniform(-44, -22), -990.0, rng.uniform(FLUID_HU, 40))
    canvas.paint_layers(belly.stomach, ((0.0, 80.0), (4.5, content)))


def _paint_organs(canvas: Canvas, belly: Belly, rng: np.random.Generator) -> None:
    _paint_pancreas(canvas, rng)
    liver_hu, spleen_hu, kidney_hu = rng.uniform(95, 120), rng.uniform(105, 125), rng.uniform(165, 185)
    for kidney, label, side in zip(belly.kidneys, (_KIDNEY_RIGHT, _KIDNEY_LEFT), (-1, 1), strict=True):
        canvas.paint(kidney, kidney_hu, label=label)
        (x0, y0, z0), (x1, y1, z1) = kidney.low, kidney.high
        middle = ((x0 + x1) / 2 - side * 6, (y0 + y1) / 2 - 3, (z0 + z1) / 2)
        canvas.paint(common(ellipsoid(middle, (8, 10, 23)), grown(kidney, -7.0)), FAT_HU + 35)
        gland = capsule((side * 34, 30, z1 + 2), (side * 42, 40, z1 - 14), (3.5, 3.0), tall=1.6)
        canvas.paint(gland, 60.0)
    canvas.paint(belly.liver, liver_hu, label=_LIVER)
    _paint_liver_vessels(canvas, belly.liver, liver_hu, rng)
    canvas.paint(belly.spleen, spleen_hu, label=_SPLEEN)
    bladder = ellipsoid((-38 + rng.uniform(-4, 4), -44, -14), (14, 17, 25), turn(0, 25))
    inside = common(bladder, grown(belly.wall.cavity, -6.0))
    canvas.paint_layers(inside, ((0.0, 60.0), (1.6, FLUID_HU)), label=0)


def _paint_liver_vessels(canvas: Canvas, liver: Solid, liver_hu: float, rng: np.random.Generator) -> None:
    """Portal and hepatic veins, brighter than the liver."""
    roots = ((-18.0, -4.0, 22.0), (-22.0, 6.0, 78.0))
    for root in roots:
        tree = grow(root, points_inside(liver, 24, rng, margin_mm=8), rng, leaf_radius_mm=1.2)
        paint_tree(canvas, tree, liver_hu + 40, least_mm=1.1)


def _paint_pancreas(canvas: Canvas, rng: np.random.Generator) -> None:
    lobes = Wobble.draw(rng, amplitude_mm=1.6, length_mm=12, count=5)
    line = [(-30, -16, -14), (-10, -20, 0), (16, -10, 8), (44, 6, 16), (66, 18, 22)]
    for start, end in pairwise(line):
        canvas.paint(uneven(capsule(start, end, (11, 9), tall=1.2), lobes), 95.0)
    canvas.paint(capsule((-8, -8, -6), (70, 24, 26), (4.5, 4.0)), _VEIN_HU)
