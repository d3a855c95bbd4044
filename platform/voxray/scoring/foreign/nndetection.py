"""nnDetection's predictions: one pickle a case, read only where the user trusts it, and then in a process of its own.

nnDetection's boxes are ``a1 b1 a2 b2 c1 c2`` along the axes of SimpleITK's array (z y x), and lie one voxel outside
the object on both sides: voxels 2 to 4 are [1, 5]. In edge coordinates that is [2, 5].
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxray.core.detections import Detections
from voxray.core.errors import ConfigError
from voxray.core.volume import Grid
from voxray.scoring.foreign.checks import checked, problem

PICKLE_SUFFIX = "_boxes.pkl"
TIMEOUT_S = 600
_FIELDS = ("pred_boxes", "pred_scores", "pred_labels", "restore", "itk_origin", "itk_spacing", "itk_direction")
_REMEDY = "Give the case_boxes.pkl files that nndet_predict wrote."


def read_pickles(paths: Sequence[Path], *, trusted: bool) -> dict[str, Detections]:
    """The detections of each case in LPS mm, by the file's name without its end."""
    if not trusted:
        raise ConfigError(
            f"{paths[0]}: is a pickle, which can run any code when it is read; if you trust who wrote it, add "
            f"--trust-pickle."
        )
    return {
        path.name.removesuffix(PICKLE_SUFFIX): _detections(fields, str(path))
        for path, fields in zip(paths, _unpickled(paths), strict=True)
    }


def _unpickled(paths: Sequence[Path]) -> list[Mapping[str, NDArray[Any]]]:
    """The arrays of every pickle, from a child that can hand over nothing but arrays."""
    command = [sys.executable, "-m", "voxray.scoring.foreign.unpickle", *_FIELDS, "original_size_of_raw_data"]
    names = "\n".join(str(path.absolute()) for path in paths).encode()
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "HOME")}
    try:
        done = subprocess.run(
            command, input=names, capture_output=True, timeout=TIMEOUT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        text = f"{paths[0].parent}: reading its pickles took more than {TIMEOUT_S} s."
        raise problem("pickle", text, _REMEDY) from None
    if done.returncode != 0:
        why = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise problem("pickle", f"{paths[0].parent}: a pickle cannot be read: {why[-1][:300]}.", _REMEDY)
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as table:
        arrays = dict(table)
    return [
        {name.partition("/")[2]: value for name, value in arrays.items() if name.startswith(f"{index}/")}
        for index in range(len(paths))
    ]


def _detections(fields: Mapping[str, NDArray[Any]], where: str) -> Detections:
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        raise problem("form", f"{where}: has no {', '.join(missing)}.", _REMEDY)
    if not bool(fields["restore"]):
        text = f"{where}: its boxes lie on the preprocessed grid, whose place in the scan it does not say."
        raise problem("frame", text, "Predict with restore, as nndet_predict does by default.")
    boxes = np.asarray(fields["pred_boxes"], np.float64)
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 6):
        raise problem("form", f"{where}: pred_boxes must be rows of six numbers.", _REMEDY)
    found = checked(edges_of(boxes), fields["pred_scores"], fields["pred_labels"], frame="voxel", where=where)
    return found.to_world(_grid(fields, where))


def edges_of(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """nnDetection's boxes as ``x1 y1 z1 x2 y2 z2`` in edge coordinates of the image in ITK's axes."""
    z1, y1, z2, y2, x1, x2 = np.reshape(boxes, (-1, 6)).T
    return np.stack([x1 + 1, y1 + 1, z1 + 1, x2, y2, z2], axis=1)


def _grid(fields: Mapping[str, NDArray[Any]], where: str) -> Grid:
    """The scan's grid as ITK has it; its shape does not matter to the boxes."""
    origin, spacing, direction = (
        np.asarray(fields[name], np.float64).reshape(-1) for name in ("itk_origin", "itk_spacing", "itk_direction")
    )
    if (len(origin), len(spacing), len(direction)) != (3, 3, 9) or not (spacing > 0).all():
        raise problem("frame", f"{where}: itk_origin, itk_spacing and itk_direction give no 3D grid.", _REMEDY)
    return Grid((1, 1, 1), _three(spacing), _three(origin), tuple(direction.tolist()))


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z
