"""Label maps in the files that viewers ask for, and the middles of what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from jaxtyping import Shaped

from voxray.core.storage import whole
from voxray.core.volume import Volume
from voxray.readers import read_label_map, write_nifti
from voxray.serving.workers.protocol import Centroids, LabelFormat


def label_file(labels: Path, label_format: LabelFormat) -> Path:
    """The label map in another format or type, beside the original; the original where nothing is to be done.

    A type that is too narrow for a value is widened, as a label may not change.
    """
    extension, dtype, compress = label_format
    volume = read_label_map(labels)
    wanted = np.dtype(dtype or volume.voxels.dtype)
    if int(volume.voxels.max(initial=0)) > np.iinfo(wanted).max:
        wanted = np.dtype(np.uint16)
    if labels.name.endswith(extension) and wanted == volume.voxels.dtype:
        return labels
    packed = "-packed" if compress and extension == ".nrrd" else ""
    path = labels.with_name(f"{labels.name.split('.')[0]}-{wanted.name}{packed}{extension}")
    if not path.exists():
        _write(Volume(volume.voxels.astype(wanted), volume.grid), path, compress=compress)
    return path


def centroids_of(labels: Path) -> Centroids:
    """Those of a file with a label map; reckoned once, and kept beside it."""
    kept = labels.with_name(f"{labels.name.split('.')[0]}-centroids.json")
    if not kept.exists():
        with whole(kept) as beside:
            beside.write_text(json.dumps(centroids(read_label_map(labels).voxels)))
    return {int(value): (x, y, z) for value, (x, y, z) in json.loads(kept.read_text()).items()}


def centroids(voxels: Shaped[np.ndarray, "x y z"]) -> dict[int, tuple[int, int, int]]:
    """For each label but 0 the voxel at its centre of mass."""
    size = int(voxels.max(initial=0)) + 1
    counts, sums = np.zeros(size), np.zeros((3, size))
    for x, plane in enumerate(voxels):  # one by one, as the places of all voxels take gigabytes
        places = np.nonzero(plane)
        values = plane[places]
        here = np.bincount(values, minlength=size)
        counts += here
        sums[0] += x * here
        for axis, where in enumerate(places, start=1):
            sums[axis] += np.bincount(values, weights=where, minlength=size)
    return {
        int(value): (int(middle[0]), int(middle[1]), int(middle[2]))
        for value in np.flatnonzero(counts)
        for middle in [np.floor(sums[:, value] / counts[value])]
    }


def _write(volume: Volume, path: Path, *, compress: bool) -> None:
    if path.suffix != ".nrrd":
        write_nifti(volume, path)
        return
    image: Any = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.voxels.transpose(2, 1, 0)))
    image.SetSpacing(volume.grid.spacing_mm)
    image.SetOrigin(volume.grid.origin_mm)
    image.SetDirection(volume.grid.direction)
    with whole(path) as beside:  # whose name says nothing of the format
        SimpleITK.WriteImage(image, str(beside), useCompression=compress, imageIO="NrrdImageIO")
