"""nnDetection's toy: one noisy cube, solid or with a hole through it, in uniform noise.

After `nndet_example` (Baumgartner 2021): noise is uniform on [0, 1], an object adds 0.4, all is cut to [0, 1]; its
side is 16 to 31 voxels, a hole leaves walls of 4 voxels and runs along the first axis. Here a value v is stored as
1000 v - 1000 HU: 0 is air and 1 is water.
"""

from __future__ import annotations

import numpy as np

from voxray.core.detections import boxes_to_world
from voxray.core.volume import Grid, Volume
from voxray.phantoms.phantom import Phantom

OBJECTS = ("square", "square_hole")
STRUCTURES = OBJECTS

_SIDE_VOX = {"small": 96, "large": 256}
_OBJECT_VOX = (16, 32)
_WALL_VOX = 4
_ADDED = 0.4


def draw_cubes(rng: np.random.Generator, index: int, *, size: str) -> Phantom:
    """A cube of noise at 1 mm with one object; even and odd indices are the two classes."""
    side = _SIDE_VOX[size]
    edge = int(rng.integers(*_OBJECT_VOX))
    start = rng.integers(0, side - edge + 1, size=3)
    class_index = index % len(OBJECTS)
    labels = np.zeros((side, side, side), np.uint8)
    cube = tuple(slice(int(first), int(first) + edge) for first in start)
    labels[cube] = class_index + 1
    if OBJECTS[class_index] == "square_hole":
        inner = slice(_WALL_VOX, edge - _WALL_VOX)
        labels[cube][:, inner, inner] = 0
    values = rng.random(labels.shape, dtype=np.float32)
    values[labels > 0] += np.float32(_ADDED)
    voxels = np.rint(1000 * np.minimum(values, 1) - 1000).astype(np.int16)
    grid = Grid(labels.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    box = np.concatenate([start, start + edge]).astype(np.float64)[None]
    return Phantom(Volume(voxels, grid), boxes_to_world(box, grid), np.array([class_index]), labels)
