"""NIfTI-1 and NIfTI-2 in one file (.nii, .nii.gz): every field that matters is checked before a voxel is read.

Decided where the format leaves room: the sform wins over the qform (a disagreement is reported as a warning); a
quaternion a little longer than 1 is made 1 long; a file with neither is refused, because its orientation would be a
guess; units that are not stated are millimetres, as every writer means them; a slope of 0 or NaN means that values
are not scaled; compression is told from the file's first bytes, not from its name.
"""

from __future__ import annotations

import math
import struct
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float

from voxray.core.volume import Grid, Shape
from voxray.readers.geometry import grid_of, shape_of
from voxray.readers.refusals import refusal
from voxray.readers.stored import Stored
from voxray.readers.streams import StreamCodes, VoxelStream, check_length, is_gzip, read_slices, read_start

Affine = Float[np.ndarray, "4 4"]

_QUATERNIONS: Any = nib.quaternions
_CODES = StreamCodes("nifti.truncated", "nifti.corrupt", "nifti.longer")
_HEADERS: dict[int, tuple[Any, bytes, int, int]] = {
    348: (nib.Nifti1Header, b"n+1\0", 344, 352),
    540: (nib.Nifti2Header, b"n+2\0", 4, 544),
}
"""Header size -> nibabel's class, the magic of a single file, where it stands, the least data offset."""
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_AGAIN = "Copy or download the file again."
_QUATERNION_EXCESS = 1e-4
"""How much longer than 1 a quaternion may be, as four decimals leave it; nibabel refuses 2e-7, ITK nothing."""
_QUATERNION_ROUNDING = 2e-7
"""As much is float32's rounding, of which nothing is said."""


def read_nifti(path: Path) -> Stored:
    """The checked header of a NIfTI file, with its voxels behind it."""
    header, version = _header(path)
    shape = _shape(header, path)
    dtype = _dtype(header, path)
    grid, warnings = _grid(header, shape, path)
    source = _source(header, shape, dtype, path)
    check_length(source)
    if path.name.lower().endswith(".gz") != (source.packing == "zlib"):
        warnings.append("the name's ending does not tell whether the file is compressed; its content was followed")
    return Stored(
        path=path,
        format=f"NIfTI-{version}",
        grid=grid,
        dtype=dtype.name,
        slices=partial(read_slices, source),
        warnings=tuple(warnings),
    )


def _header(path: Path) -> tuple[Any, int]:
    if path.stat().st_size == 0:
        raise refusal("nifti.empty", path, "is empty (0 bytes).", remedy=_AGAIN)
    block = read_start(path, 544)
    for size, (kind, magic, place, _) in _HEADERS.items():
        for order in "<>":
            if len(block) >= 4 and struct.unpack(f"{order}i", block[:4])[0] == size:
                if len(block) < size:
                    raise refusal("nifti.truncated", path, "ends within its header.", remedy=_AGAIN)
                _check_magic(block[place : place + 4], magic, path)
                return kind(block[:size], endianness=order, check=False), 1 if size == 348 else 2
    raise refusal("nifti.not_nifti", path, "does not start with a NIfTI header.", remedy=_AGAIN)


def _check_magic(found: bytes, wanted: bytes, path: Path) -> None:
    if found == wanted:
        return
    if found in (b"ni1\0", b"ni2\0"):
        raise refusal(
            "nifti.pair",
            path,
            "is the header of a pair of files (.hdr and .img).",
            remedy="Convert the pair to one .nii.gz file.",
        )
    raise refusal(
        "nifti.bad_magic",
        path,
        f"has the magic bytes {found!r}; a NIfTI file has {wanted!r}.",
        remedy="Convert the volume (Analyze 7.5 holds no orientation) to NIfTI again from the original images.",
    )


def _shape(header: Any, path: Path) -> Shape:
    dim = [int(value) for value in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise refusal(
            "nifti.bad_dim", path, f"says that it has {dim[0]} dimensions; 3 are allowed.", remedy="Export it again."
        )
    sizes = dim[1 : dim[0] + 1]
    if len(sizes) < 3:
        raise refusal(
            "nifti.not_3d",
            path,
            f"has {len(sizes)} dimensions; 3 are needed.",
            remedy="Give a volume; a single slice needs a third side of 1.",
        )
    if any(size != 1 for size in sizes[3:]):
        raise refusal(
            "nifti.four_d",
            path,
            f"has the sides {' x '.join(map(str, sizes))}; one 3D volume with one value per voxel is needed.",
            remedy="Split it into 3D volumes and give one of them.",
        )
    return shape_of(sizes[:3], path)


def _dtype(header: Any, path: Path) -> np.dtype[Any]:
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code not in _DTYPES:
        raise refusal(
            "nifti.datatype",
            path,
            f"has the datatype code {code}; one integer or real number per voxel is needed (not colour or complex).",
            remedy="Write the volume as int16 (images) or uint8 (label maps).",
        )
    dtype = np.dtype(_DTYPES[code]).newbyteorder(header.endianness)
    if bits != dtype.itemsize * 8:
        raise refusal(
            "nifti.datatype",
            path,
            f"says that a voxel of {dtype.name} has {bits} bits, not {dtype.itemsize * 8}.",
            remedy="The header is damaged; export the volume again.",
        )
    return dtype


def _source(header: Any, shape: Shape, dtype: np.dtype[Any], path: Path) -> VoxelStream:
    offset, least = float(header["vox_offset"]), _HEADERS[int(header["sizeof_hdr"])][3]
    if not (math.isfinite(offset) and offset.is_integer() and least <= offset < 2**31):
        raise refusal(
            "nifti.bad_offset",
            path,
            f"says that its voxels start at byte {offset:g}; {least} is the first possible place.",
            remedy="The header is damaged; export the volume again.",
        )
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isnan(slope) or slope == 0.0:
        slope, intercept = 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise refusal(
            "nifti.bad_scaling",
            path,
            f"has the scaling slope {slope:g} and intercept {intercept:g}; both must be numbers.",
            remedy="Write the volume again with slope 1 and intercept 0.",
        )
    with path.open("rb") as file:
        packed = is_gzip(file.read(2))
    return VoxelStream(
        path=path,
        packing="zlib" if packed else "raw",
        dtype=dtype,
        shape=shape,
        codes=_CODES,
        skip=int(offset),
        slope=slope,
        intercept=intercept,
    )


def _grid(header: Any, shape: Shape, path: Path) -> tuple[Grid, list[str]]:
    warnings: list[str] = []
    units = int(header["xyzt_units"]) & 7
    if units not in _MILLIMETRES:
        raise refusal(
            "nifti.bad_units",
            path,
            f"has the unit code {units} for lengths; metre, millimetre and micron are known.",
            remedy="Write the volume again in millimetres.",
        )
    if units in (1, 3):
        warnings.append(f"lengths are in {'metres' if units == 1 else 'microns'} and were converted to millimetres")
    unit_mm = _MILLIMETRES[units]
    if int(header["sform_code"]) > 0:
        grid = grid_of(_lps_mm(header.get_sform(), unit_mm), shape, path)
        warnings += _beside_sform(header, grid, unit_mm)
        return grid, warnings
    if int(header["qform_code"]) > 0:
        affine, told = _qform(header, path)
        return grid_of(_lps_mm(affine, unit_mm), shape, path), [*warnings, *told]
    raise refusal(
        "nifti.no_orientation",
        path,
        "has neither a qform nor an sform, so that its orientation is not known.",
        remedy="Convert it again from DICOM, or set the sform if you know it (nibabel: image.set_sform(affine, 1)).",
    )


def _lps_mm(affine: Affine, unit_mm: float) -> Affine:
    """A matrix to RAS in units of `unit_mm` as one to LPS mm; row by row, because infinity times 0 is NaN."""
    scale = np.array([-unit_mm, -unit_mm, unit_mm, 1.0])
    turned: Affine = np.asarray(affine, np.float64) * scale[:, None]
    return turned


def _qform(header: Any, path: Path) -> tuple[Affine, list[str]]:
    """The matrix of the qform to RAS, and what is worth knowing of its quaternion."""
    spacing = [float(side) for side in header["pixdim"][1:4]]
    if not all(math.isfinite(side) and side > 0 for side in spacing):
        raise refusal(
            "nifti.bad_pixdim",
            path,
            f"has the voxel sides {spacing} beside a qform; they must be positive.",
            remedy="Write the true spacing into pixdim, in millimetres.",
        )
    try:
        affine, excess = _rotated(header)
    except ValueError as error:
        raise refusal(
            "nifti.bad_qform",
            path,
            f"has a qform that is no rotation ({error}).",
            remedy="Restore the geometry from the original images.",
        ) from None
    told = f"the qform's quaternion is longer than 1 by {excess:.1g}; it was made 1 long"
    return affine, [told] if excess > _QUATERNION_ROUNDING else []


def _rotated(header: Any) -> tuple[Affine, float]:
    """The matrix of the qform by NIfTI's method 2, and how much longer than 1 its quaternion was.

    A qfac (pixdim[0]) below 0 turns z over; any other counts as 1, as NIfTI's own library has it.
    """
    vector = np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"])
    excess = float(np.linalg.norm(vector)) - 1.0
    if not math.isfinite(excess) or excess > _QUATERNION_EXCESS:
        raise ValueError(f"its quaternion has a length of {excess + 1:.6g} without its first part; 1 is the most")
    if excess > 0.0:
        vector /= excess + 1.0
    first = math.sqrt(max(0.0, 1.0 - float(vector @ vector)))
    sides = np.array([float(side) for side in header["pixdim"][1:4]])
    if not (np.isfinite(sides) & (sides > 0)).all():
        raise ValueError(f"its voxel sides are {sides.tolist()}")
    if header["pixdim"][0] < 0:
        sides[2] *= -1.0
    affine = np.eye(4)
    affine[:3, :3] = _QUATERNIONS.quat2mat([first, *vector]) * sides
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine, max(excess, 0.0)


def _beside_sform(header: Any, grid: Grid, unit_mm: float) -> list[str]:
    """What a qform or pixdim says against the sform, which wins."""
    warnings = []
    spacing = [float(side) * unit_mm for side in header["pixdim"][1:4]]
    if not np.allclose(spacing, grid.spacing_mm, rtol=1e-3):
        text = " x ".join(f"{side:.6g}" for side in spacing)
        warnings.append(f"pixdim says {text} mm, against the sform, which was followed")
    if int(header["qform_code"]) > 0:
        try:
            other = Grid.from_affine(_lps_mm(_rotated(header)[0], unit_mm), grid.shape)
            differ = not grid.is_close(other, tolerance_mm=0.1 * min(grid.spacing_mm))
        except ValueError:
            differ = True
        if differ:
            warnings.append("qform and sform place the volume differently; the sform was followed")
    return warnings
