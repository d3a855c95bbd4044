"""Label maps in the files that viewers ask for, and the middles of what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from jaxtyping import Shaped

from voxray.place import whole
from voxray.readers import read_label_map, write_nifti
from voxray.volume import Volume

EXTENSIONS = (".nrrd", ".nii.gz", ".nii")
DTYPES = ("uint8", "uint16")


def label_file(labels: Path, *, extension: str, dtype: str | None = None, compress: bool = True) -> Path:
    """The label map in another format or type, beside the original; the original where nothing is to be done.

    `dtype` None keeps the type; one that is too narrow for a value is widened, as a label may not change.
    """
    assert extension in EXTENSIONS, extension
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
