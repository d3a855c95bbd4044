"""What lies between the lungs: the heart in its fat, the great vessels, the oesophagus and the airways."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from voxray.core.volume import Vector
from voxray.phantoms.canvas import Canvas
from voxray.phantoms.shapes import Solid, capsule, grown
from voxray.phantoms.trunk import BLOOD_HU, FAT_HU

HILA: tuple[Vector, Vector] = ((-40.0, 10.0, 6.0), (42.0, 12.0, 10.0))
"""Where vessels and airways enter the right and the left lung, LPS mm."""

_TOP, _BOTTOM = 130.0, -130.0
_ARCH: tuple[Vector, ...] = (
    (-4.0, -30.0, 8.0),
    (-12.0, -28.0, 34.0),
    (-6.0, -18.0, 50.0),
    (8.0, 0.0, 55.0),
    (20.0, 18.0, 48.0),
    (24.0, 28.0, 30.0),
    (24.0, 31.0, 0.0),
    (20.0, 30.0, _BOTTOM),
)
# Start, end and the radii at both, in mm: the arteries to head and arms, caval vein, pulmonary trunk.
_TUBES: tuple[tuple[Vector, Vector, tuple[float, float]], ...] = (
    ((-7.0, -6.0, 54.0), (-14.0, -12.0, _TOP), (5.5, 5.5)),
    ((1.0, -6.0, 54.0), (2.0, -8.0, _TOP), (4.5, 4.5)),
    ((9.0, -6.0, 54.0), (18.0, 2.0, _TOP), (5.0, 5.0)),
    ((-26.0, -20.0, 0.0), (-24.0, -20.0, _TOP), (9.0, 8.0)),
    ((18.0, -34.0, 4.0), (16.0, -16.0, 24.0), (13.5, 12.5)),
)
_CARINA: Vector = (0.0, 12.0, 30.0)
_LOBES = ((22.0, -34.0), (-18.0, -6.0), (4.0, 30.0))
"""Where the lobar bronchi go from the hilum: backwards and upwards, in mm."""


def paint_mediastinum(canvas: Canvas, heart: Solid, *, heart_label: int, airway_label: int) -> None:
    """The heart without its fat and the airways down to the hila get labels; all else is no part of the lungs."""
    canvas.paint(heart, FAT_HU + 15, label=0)
    vessels = [(start, end, (13.5, 12.5) if end[2] > 0 else (12.0, 10.5)) for start, end in pairwise(_ARCH)]
    vessels += _TUBES
    for x, y, z in HILA:
        vessels.append(((10.0, -10.0, 22.0), (x, y, z), (10.5, 7.5)))
        vessels.append(((0.4 * x, 2.0, -12.0), (x, y, z - 12), (9.0, 6.0)))
    # The heart comes after the vessels, which begin inside it.
    for start, end, radii in vessels:
        canvas.paint(capsule(start, end, radii), BLOOD_HU, label=0)
    canvas.paint(grown(heart, -3.0), BLOOD_HU, label=heart_label)
    canvas.paint(capsule((7, 26, _TOP), (4, 24, _BOTTOM), (6.0, 7.0)), 35.0, label=0)
    _paint_airways(canvas, airway_label)


def _paint_airways(canvas: Canvas, label: int) -> None:
    """Walls first and the air inside after them, so that branches open into each other."""
    main = [((0.0, 2.0, _TOP), _CARINA, 9.0), *((_CARINA, (x * 1.02, y + 4, z + 2), 6.5) for x, y, z in HILA)]
    lobar = [((x * 1.02, y + 4, z + 2), (x * 1.45, y + back, z + up), 3.6) for x, y, z in HILA for back, up in _LOBES]
    airways: Sequence[tuple[Vector, Vector, float]] = [*main, *lobar]
    for start, end, radius in airways:
        canvas.paint(capsule(start, end, (radius + 1.6, 0.85 * radius + 1.4)), 25.0)
    for index, (start, end, radius) in enumerate(airways):
        tube = capsule(start, end, (radius, 0.85 * radius))
        canvas.paint(tube, -985.0, label=label if index < len(main) else None)
