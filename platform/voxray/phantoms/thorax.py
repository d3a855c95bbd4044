"""A chest: lungs with branching vessels, mediastinum, ribs and spine, the organs below, and nodules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from voxray.core.detections import boxes_to_voxel
from voxray.core.volume import Grid, Vector, Volume
from voxray.phantoms.canvas import Canvas, Tissue, levelled
from voxray.phantoms.mediastinum import HILA, paint_mediastinum
from voxray.phantoms.nodules import draw_nodules
from voxray.phantoms.phantom import Phantom
from voxray.phantoms.scanner import draw_grid, scan
from voxray.phantoms.shapes import (
    Array,
    Solid,
    Wobble,
    column,
    common,
    ellipsoid,
    grown,
    half_space,
    joined,
    sheet_of,
    turn,
    uneven,
    without,
)
from voxray.phantoms.trunk import (
    BLOOD_HU,
    FAT_HU,
    Build,
    Spine,
    Wall,
    draw_wall,
    paint_rib,
    paint_spine,
    paint_wall,
    rib_path,
)
from voxray.phantoms.vessels import Tree, grow, paint_tree, points_inside

OBJECTS = ("nodule",)
STRUCTURES = ("lung_right", "lung_left", "heart", "trachea", "spine", "ribs", "liver")
_LUNG_RIGHT, _LUNG_LEFT, _HEART, _TRACHEA, _SPINE, _RIBS, _LIVER = range(1, 8)

_SIZE_MM = (350.0, 270.0, 216.0)
_SPACING_MM = {"small": (2.1, 2.4), "large": (0.9, 1.1)}
_LEAVES = {"small": 190, "large": 260}
_DIAMETER_MM = {"small": (12.0, 26.0), "large": (5.0, 24.0)}
# A point and the normal of each fissure: oblique on both sides, and the horizontal one of the right lung.
_FISSURES: tuple[tuple[tuple[Vector, Vector], ...], ...] = (
    (((-70.0, 0.0, 0.0), (0.0, 0.75, 0.66)), ((-70.0, -40.0, 12.0), (0.0, -0.1, 1.0))),
    (((70.0, 0.0, 4.0), (0.0, 0.72, 0.69)),),
)
# Of no nodule, one, two, three, four and five.
_COUNT_P = (0.1, 0.15, 0.2, 0.2, 0.2, 0.15)


class Chest(NamedTuple):
    """The large solids; pairs are right, left."""

    wall: Wall
    spine: Spine
    heart: Solid
    domes: tuple[Solid, Solid]
    lungs: tuple[Solid, Solid]


def draw_thorax(rng: np.random.Generator, index: int, *, size: str) -> Phantom:
    """The `index`-th chest of a set."""
    grid = draw_grid(rng, index, size_mm=_SIZE_MM, spacing_mm=_SPACING_MM[size])
    build = Build.draw(rng)
    chest = _draw_chest(build, rng)
    trees = [
        grow(hilum, points_inside(lung, _LEAVES[size], rng, margin_mm=4), rng, leaf_radius_mm=rng.uniform(0.8, 0.95))
        for hilum, lung in zip(HILA, chest.lungs, strict=True)
        for _ in ("arteries", "veins")
    ]
    count = int(rng.choice(len(_COUNT_P), p=_COUNT_P))
    nodules = draw_nodules(
        chest.lungs, trees, count, rng, diameter_mm=_DIAMETER_MM[size], fits=lambda box: _inside(box, grid)
    )
    canvas = Canvas(grid)
    paint_wall(canvas, chest.wall, build, rng)
    canvas.paint(chest.wall.cavity, _strands(rng, FAT_HU + 5))
    _paint_below(canvas, chest, rng)
    _paint_lungs(canvas, chest, trees, rng)
    paint_mediastinum(canvas, chest.heart, heart_label=_HEART, airway_label=_TRACHEA)
    _paint_bones(canvas, chest, rng)
    for nodule in nodules:
        canvas.paint(nodule.solid, rng.uniform(25, 55))
    voxels = scan(canvas.voxels, grid, rng, noise_hu=rng.uniform(11, 19))
    boxes = np.array([nodule.box_mm for nodule in nodules]).reshape(-1, 6)
    return Phantom(Volume(voxels, grid), boxes, np.zeros(len(boxes), np.int64), canvas.labels)


def _inside(box_mm: Float64[np.ndarray, " 6"], grid: Grid) -> bool:
    """Whether the scan holds the whole box, with a voxel to spare."""
    (box,) = boxes_to_voxel(box_mm[None], grid)
    return bool(np.all(box[:3] > 1) and np.all(box[3:] < np.array(grid.shape) - 1))


def _draw_chest(build: Build, rng: np.random.Generator) -> Chest:
    wall = draw_wall(build, rng, wall_mm=15)
    spine = Spine.draw(rng, build, pitch_mm=24, width_mm=16, reach_mm=115)
    tilt = turn(2, rng.uniform(28, 42)) @ turn(1, rng.uniform(12, 25))
    scale = rng.uniform(0.92, 1.06)
    centre = (16 + rng.uniform(-4, 4), -30.0, -32 + rng.uniform(-5, 5))
    heart = ellipsoid(
        centre, (58 * scale, 42 * scale, 44 * scale), tilt, Wobble.draw(rng, amplitude_mm=1.2, length_mm=70)
    )
    top = -38 + rng.uniform(-12, 10)
    half_x = wall.cavity.high[0]
    domes = (_dome(-half_x, top, rng), _dome(half_x, top - rng.uniform(6, 16), rng))
    return Chest(wall, spine, heart, domes, _draw_lungs(wall, spine, heart, domes))


def _dome(side_x: float, top: float, rng: np.random.Generator) -> Solid:
    """Half of the diaphragm, narrower than the chest, so that the lung's edge hangs down around it."""
    x, half = 0.47 * side_x, 0.46 * abs(side_x)
    wobble = Wobble.draw(rng, amplitude_mm=1.5, length_mm=80)
    upper = ellipsoid((x, 2, top - 62), (half, 74, 62), None, wobble)
    below = ellipsoid((x, 2, top - 130), (half + 14, 86, 100))
    return joined(upper, below, smooth_mm=10)


def _draw_lungs(wall: Wall, spine: Spine, heart: Solid, domes: tuple[Solid, Solid]) -> tuple[Solid, Solid]:
    """What the chest wall, the diaphragm and the mediastinum leave: one lung on each side."""
    (low_x, low_y, _), (high_x, high_y, _) = wall.cavity.low, wall.cavity.high
    half_x, half_y, y = (high_x - low_x) / 2, (high_y - low_y) / 2, (low_y + high_y) / 2
    apex = joined(
        ellipsoid((0, y + 6, 18), (1.03 * half_x, 1.05 * half_y, 82)),
        column((0, y), (2 * half_x, 2 * half_y), top=18),
    )
    room = common(grown(wall.cavity, -1.5), apex, smooth_mm=8)
    middle = joined(
        ellipsoid((0, -8, 0), (25, 75, 260)),
        column((0, spine.y_mm - 2), (22, 22)),
        column((0, spine.y_mm + 26), (19, 24)),
        grown(heart, 3.0),
        ellipsoid((2, 6, 50), (36, 34, 46)),
        smooth_mm=14,
    )
    free = without(room, middle, *(grown(dome, 1.5) for dome in domes), smooth_mm=7)
    right = common(free, half_space((0, 0, 0), (1, 0, 0)))
    left = common(free, half_space((0, 0, 0), (-1, 0, 0)))
    # Boxes as tight as the scan: nodules and vessels are drawn in them.
    bottom, top = -_SIZE_MM[2] / 2 - 10, 102.0
    return (
        Solid(right.distance, (low_x, low_y, bottom), (0.0, high_y, top)),
        Solid(left.distance, (0.0, low_y, bottom), (high_x, high_y, top)),
    )


def _paint_below(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Under the diaphragm: its muscle, liver on the right, stomach with its bubble and spleen on the left."""
    room = grown(chest.wall.cavity, -2.0)
    for dome in chest.domes:
        canvas.paint_layers(common(dome, room), ((0.0, 45.0), (3.0, _strands(rng, FAT_HU))))
    right, left = chest.domes
    lobe = joined(
        grown(right, -3.5),
        common(grown(left, -4.0), ellipsoid((20, -40, right.high[2] - 62), (55, 42, 36))),
        smooth_mm=10,
    )
    liver = without(
        common(lobe, grown(room, -2.0), smooth_mm=6), column((0, chest.spine.y_mm + 4), (34, 36)), smooth_mm=10
    )
    canvas.paint(liver, rng.uniform(55, 65), label=_LIVER)
    spleen = common(ellipsoid((84, 36, left.high[2] - 50), (30, 34, 38)), grown(left, -5.0), room, smooth_mm=5)
    canvas.paint(spleen, rng.uniform(46, 54))
    stomach = common(ellipsoid((58, -18, left.high[2] - 44), (36, 34, 36)), grown(left, -5.0), room, smooth_mm=5)
    canvas.paint_layers(stomach, ((0.0, 38.0), (4.0, levelled(-24, -990.0, 22.0))))


def _paint_lungs(canvas: Canvas, chest: Chest, trees: list[Tree], rng: np.random.Generator) -> None:
    patchy = Wobble.draw(rng, amplitude_mm=10.0, length_mm=45, count=6)
    level = rng.uniform(-875, -840)

    def parenchyma(x: Array, y: Array, z: Array) -> Array:
        # Blood sinks to the back of someone who lies on it.
        return np.float32(level) + patchy(x, y, z) + np.float32(0.35) * y

    for lung, label, fissures in zip(chest.lungs, (_LUNG_RIGHT, _LUNG_LEFT), _FISSURES, strict=True):
        canvas.paint(lung, parenchyma, label=label)
        for point, normal in fissures:
            bent = uneven(half_space(point, normal), Wobble.draw(rng, amplitude_mm=4.0, length_mm=120))
            sheet = common(sheet_of(bent, 0.8), grown(lung, -2))
            canvas.paint(sheet, -700.0, opacity=min(1.0, 0.8 / canvas.voxel_mm))
    for tree in trees:
        paint_tree(canvas, tree, BLOOD_HU)


def _paint_bones(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    paint_spine(canvas, chest.spine, rng, label=_SPINE)
    front_y = chest.wall.cavity.low[1]
    for z in chest.spine.heights_mm:
        rank = float(np.clip((90 - z) / 180, 0, 1))
        for side in (-1, 1):
            path = rib_path(
                chest.wall.cavity,
                chest.spine,
                z=z + 4,
                side=side,
                drop_mm=30 + 45 * rank,
                reach_deg=168 - 30 * max(0.0, rank - 0.6),
            )
            paint_rib(canvas, path, label=_RIBS, cartilage_share=0.22)
    sternum = ellipsoid((0, front_y - 4, 12), (17, 5.5, 75), turn(0, 4))
    canvas.paint_layers(sternum, ((0.0, 380.0), (2.0, 130.0)))
    back_x, back_y = chest.wall.cavity.high[0] * 0.72, chest.wall.cavity.high[1] * 0.80
    for side in (-1, 1):
        blade = ellipsoid((side * back_x, back_y + 2, 52), (42, 3.2, 52), turn(2, side * -38.0))
        canvas.paint(blade, 400.0)


def _strands(rng: np.random.Generator, hu: float) -> Tissue:
    wobble = Wobble.draw(rng, amplitude_mm=7.0, length_mm=22, count=5)
    return lambda x, y, z: np.float32(hu) + wobble(x, y, z)
