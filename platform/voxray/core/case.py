"""Case: one annotated scan; Tile: the piece of a resampled case that a shard row holds; as plain data.

A tile row's voxels are a blosc2 payload (bitshuffle, zstd) in a ``large_binary`` column: about half the size of
raw int16 and several times faster to read than an Arrow tensor column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import blosc2
import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int16, Int64, UInt8

from voxray.core.task_name import TaskName
from voxray.core.volume import Shape, Volume

_ROWS = 16


@dataclass(frozen=True)
class Case:
    """One annotated scan on one grid: its image with boxes, a label map, or both.

    Boxes are edge coordinates in voxels of ``image.grid``; ``classes[i]`` indexes the dataset's class names.
    In ``labels`` 0 is background and k is class k - 1 of the dataset's names.
    """

    case_id: str
    patient_id: str
    image: Volume
    boxes: Float64[np.ndarray, "n 6"]
    classes: Int64[np.ndarray, " n"]
    labels: UInt8[np.ndarray, "x y z"] | None = None
    warnings: tuple[str, ...] = ()
    """What is worth knowing of its scan and its truth, though both were read."""

    def for_task(self, task: TaskName) -> Case:
        """The case with the truth that the task learns from alone: a detection's boxes, a segmentation's labels."""
        if task == "detection":
            return replace(self, labels=None)
        return replace(self, boxes=np.zeros((0, 6)), classes=np.zeros(0, np.int64))


@dataclass(frozen=True)
class VolumeStats:
    """Statistics of a whole resampled volume over its voxels that are not 0 HU, for per-volume intensity."""

    mean_hu: float
    std_hu: float
    min_hu: float
    max_hu: float

    @staticmethod
    def of(voxels: Int16[np.ndarray, "x y z"]) -> VolumeStats:
        """The statistics of an image; a constant or empty one gets a standard deviation of 1."""
        count, total, squares = 0, 0.0, 0.0
        for first in range(0, voxels.shape[0], _ROWS):
            slab = voxels[first : first + _ROWS]
            values = slab.astype(np.float64).ravel()
            count += int(np.count_nonzero(slab))
            total += float(slab.sum(dtype=np.int64))
            squares += float(np.dot(values, values))
        if count == 0:
            return VolumeStats(0.0, 1.0, 0.0, 0.0)
        mean = total / count
        std = float(np.sqrt(max(squares / count - mean * mean, 0.0)))
        low, high = _end(voxels, np.min), _end(voxels, np.max)
        return VolumeStats(mean, std if std > 1e-6 else 1.0, low, high)


def _end(voxels: Int16[np.ndarray, "x y z"], end: Callable[..., Any]) -> float:
    """The smallest or largest value that is not 0."""
    found = end(voxels)
    return float(found if found else end(voxels[voxels != 0]))


@dataclass(frozen=True)
class Tile:
    """A box-shaped piece of a resampled case; boxes are in edge voxels of the tile itself.

    ``start`` is the tile's first voxel in the case's grid. ``boxes`` holds the objects that lie wholly inside;
    ``cut_boxes`` those that the border cuts, clipped, so that nobody samples background there.
    """

    case_id: str
    start: Shape
    voxels: Int16[np.ndarray, "x y z"]
    stats: VolumeStats
    boxes: Float64[np.ndarray, "n 6"]
    classes: Int64[np.ndarray, " n"]
    cut_boxes: Float64[np.ndarray, "m 6"]
    labels: UInt8[np.ndarray, "x y z"] | None = None

    @property
    def has_foreground(self) -> bool:
        """Whether a foreground patch can be cut from this tile."""
        return len(self.boxes) > 0 or (self.labels is not None and bool(self.labels.any()))


def label_counts(labels: UInt8[np.ndarray, "x y z"]) -> Int64[np.ndarray, " 256"]:
    """Voxels of each label, slab by slab and two voxels at a time: counting widens to eight bytes a value."""
    counts = np.zeros(1 << 16, np.int64)
    odd = np.zeros(256, np.int64)
    for first in range(0, labels.shape[0], _ROWS):
        values = labels[first : first + _ROWS].ravel()
        pairs = values[: values.size // 2 * 2].view(np.uint16)
        counts += np.bincount(pairs, minlength=1 << 16)
        odd += np.bincount(values[pairs.size * 2 :], minlength=256)
    square = counts.reshape(256, 256)
    return np.asarray(square.sum(axis=0) + square.sum(axis=1) + odd)


TILE_SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("start", pa.list_(pa.int32(), 3)),
        ("shape", pa.list_(pa.int32(), 3)),
        ("voxels", pa.large_binary()),
        ("labels", pa.large_binary()),
        ("stats", pa.list_(pa.float64(), 4)),
        ("boxes", pa.list_(pa.float64())),
        ("classes", pa.list_(pa.int64())),
        ("cut_boxes", pa.list_(pa.float64())),
        ("has_foreground", pa.bool_()),
    ]
)


def tile_to_row(tile: Tile) -> dict[str, Any]:
    """The tile as one row of `TILE_SCHEMA`."""
    return {
        "case_id": tile.case_id,
        "start": list(tile.start),
        "shape": list(tile.voxels.shape),
        "voxels": pack(tile.voxels),
        "labels": None if tile.labels is None else pack(tile.labels),
        "stats": [tile.stats.mean_hu, tile.stats.std_hu, tile.stats.min_hu, tile.stats.max_hu],
        "boxes": tile.boxes.ravel().tolist(),
        "classes": tile.classes.tolist(),
        "cut_boxes": tile.cut_boxes.ravel().tolist(),
        "has_foreground": tile.has_foreground,
    }


def row_to_tile(row: dict[str, Any]) -> Tile:
    """The inverse of `tile_to_row`."""
    shape = tuple(int(side) for side in row["shape"])
    x, y, z = (int(value) for value in row["start"])
    return Tile(
        case_id=row["case_id"],
        start=(x, y, z),
        voxels=unpack(row["voxels"], shape, np.int16),
        stats=VolumeStats(*(float(value) for value in row["stats"])),
        boxes=np.asarray(row["boxes"], np.float64).reshape(-1, 6),
        classes=np.asarray(row["classes"], np.int64),
        cut_boxes=np.asarray(row["cut_boxes"], np.float64).reshape(-1, 6),
        labels=None if row["labels"] is None else unpack(row["labels"], shape, np.uint8),
    )


def pack(array: np.ndarray[Any, Any]) -> bytes:
    """The array's bytes in C order, blosc2-compressed with bitshuffle."""
    return bytes(
        blosc2.compress2(
            np.ascontiguousarray(array),
            codec=blosc2.Codec.ZSTD,
            clevel=3,
            filters=[blosc2.Filter.BITSHUFFLE],
            typesize=array.dtype.itemsize,
            nthreads=1,
        )
    )


def unpack(payload: bytes, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    """The inverse of `pack`."""
    return np.frombuffer(blosc2.decompress2(payload, nthreads=1), dtype=dtype).reshape(shape)
