"""Volumes as NIfTI-1: written beside the target and renamed, so that no reader ever sees half a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import isal_zlib

from voxray.core.errors import ConfigError
from voxray.core.storage import whole
from voxray.core.volume import Volume
from voxray.core.written import IMAGE, LABEL_MAP

_HEADER: Any = nib.Nifti1Header
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SLICES_AT_ONCE = 16


def write_nifti(volume: Volume, path: Path) -> None:
    """Writes a label map (uint8, uint16) or an image (int16) as .nii or .nii.gz, with qform and sform in mm.

    The same volume gives the same bytes every time.
    """
    assert volume.voxels.dtype in (np.uint8, np.uint16, np.int16), volume.voxels.dtype
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise ConfigError(f"{path}: a NIfTI file's name must end in .nii or .nii.gz; choose such a name.")
    with whole(path) as beside, beside.open("wb") as file:
        for piece in _packed(_pieces(volume)) if name.endswith(".gz") else _pieces(volume):
            file.write(piece)


def _pieces(volume: Volume) -> Iterator[bytes]:
    """The header with its empty extension, then the voxels with x running fastest."""
    header: Any = _HEADER(endianness="<")
    affine = _LPS_TO_RAS @ volume.grid.affine
    header.set_data_dtype(volume.voxels.dtype)
    header.set_data_shape(volume.grid.shape)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["descrip"] = (IMAGE if volume.voxels.dtype == np.int16 else LABEL_MAP).encode()
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    yield bytes(header.binaryblock) + b"\0\0\0\0"
    little = volume.voxels.dtype.newbyteorder("<")
    for start in range(0, volume.grid.shape[2], _SLICES_AT_ONCE):
        slab = volume.voxels[:, :, start : start + _SLICES_AT_ONCE]
        yield np.ascontiguousarray(slab.transpose(2, 1, 0), dtype=little).tobytes()


def _packed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    # isal's middle level is several times faster than zlib's default and costs a few per cent of size on CT.
    stream = isal_zlib.compressobj(level=2, wbits=31)
    for piece in pieces:
        yield stream.compress(piece)
    yield stream.flush()
