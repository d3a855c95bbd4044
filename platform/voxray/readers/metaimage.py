"""MetaImage (.mhd with .raw or .zraw, .mha): the header is parsed here, and names no file outside its own folder.

ITK's reading of the format holds: a row of TransformMatrix is the direction of one voxel axis in LPS, so the matrix
is stored transposed; AnatomicalOrientation tells nothing that the matrix does not; MET_LONG has 4 bytes.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from voxray.core.volume import Grid, Shape
from voxray.readers.beside import data_file
from voxray.readers.geometry import check_spacing, grid_of, shape_of
from voxray.readers.refusals import refusal
from voxray.readers.stored import Stored
from voxray.readers.streams import Packing, StreamCodes, VoxelStream, check_length, read_slices

_CODES = StreamCodes("metaimage.truncated", "metaimage.corrupt", "metaimage.longer")
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_SYNONYMS = {
    "Position": "Offset",
    "Origin": "Offset",
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
_MAX_HEADER = 1 << 16
_AGAIN = "Write the volume again, for instance with SimpleITK.WriteImage."


def read_metaimage(path: Path) -> Stored:
    """The checked header of a MetaImage file, with its voxels behind it."""
    fields, end, warnings = _fields(path)
    shape = _shape(fields, path)
    grid = _grid(fields, shape, path, warnings)
    source = _source(fields, shape, end, path)
    check_length(source)
    return Stored(
        path=path,
        format="MetaImage",
        grid=grid,
        dtype=source.dtype.name,
        slices=partial(read_slices, source),
        files=tuple(dict.fromkeys((path, source.path))),
        warnings=tuple(warnings),
    )


def named_data(path: Path) -> str | None:
    """The data file that a header names, as it is written; None where it holds the voxels itself, or does not say."""
    named = _fields(path)[0].get("ElementDataFile", "")
    return named if named.upper() not in ("", "LOCAL") else None


def _fields(path: Path) -> tuple[dict[str, str], int, list[str]]:
    """The header's fields, the byte after ElementDataFile's line, and what was ignored."""
    fields: dict[str, str] = {}
    warnings: list[str] = []
    with path.open("rb") as file:
        start = file.read(_MAX_HEADER)
    # The mark that an editor may put at the start is no part of the first field's name.
    text = start.removeprefix(BOM_UTF8)
    end = len(start) - len(text)
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        end += len(line)
        try:
            key, equals, value = line.decode("utf-8").partition("=")
        except UnicodeDecodeError:
            raise refusal("metaimage.bad_header", path, f"line {number} is not text.", remedy=_AGAIN) from None
        key, value = key.strip(), value.strip()
        if equals and not key.startswith("#"):
            fields[_SYNONYMS.get(key, key)] = value
        elif key and not key.startswith("#"):
            warnings.append(f"header line {number} has no '=' and was ignored")
        if key == "ElementDataFile":
            return fields, end, warnings
    raise refusal(
        "metaimage.bad_header",
        path,
        f"has no ElementDataFile in its first {_MAX_HEADER} bytes.",
        remedy=_AGAIN,
    )


def _shape(fields: Mapping[str, str], path: Path) -> Shape:
    if fields.get("ObjectType", "Image").lower() != "image":
        raise refusal(
            "metaimage.not_image",
            path,
            f"holds a {fields['ObjectType']}, not an Image.",
            remedy="Give the file of the image.",
        )
    dims, channels = _numbers(fields, "NDims", path), _numbers(fields, "ElementNumberOfChannels", path)
    sizes = _numbers(fields, "DimSize", path) or []
    if dims != [3.0] or len(sizes) != 3:
        raise refusal(
            "metaimage.not_3d",
            path,
            f"has NDims = {fields.get('NDims')} and DimSize = {fields.get('DimSize')}; one 3D volume is needed.",
            remedy="Write one 3D volume; a single slice needs a third side of 1.",
        )
    if channels not in (None, [1.0]):
        raise refusal(
            "metaimage.channels",
            path,
            f"has {fields['ElementNumberOfChannels']} values per voxel; one is needed.",
            remedy="Write the channel that holds Hounsfield units or labels.",
        )
    if not all(size.is_integer() for size in sizes):
        raise refusal("metaimage.bad_header", path, f"has DimSize = {fields['DimSize']}.", remedy=_AGAIN)
    return shape_of([int(size) for size in sizes], path)


def _grid(fields: Mapping[str, str], shape: Shape, path: Path, warnings: list[str]) -> Grid:
    spacing = _three(fields, "ElementSpacing", path, 3)
    if spacing is None and (spacing := _three(fields, "ElementSize", path, 3)) is not None:
        warnings.append("ElementSpacing is missing; ElementSize was taken, as ITK does")
    if spacing is None:
        raise refusal(
            "metaimage.no_spacing",
            path,
            "has no ElementSpacing.",
            remedy="Add the spacing of the voxels in mm, such as ElementSpacing = 0.7 0.7 1.25.",
        )
    check_spacing(spacing, path)
    matrix, offset = _three(fields, "TransformMatrix", path, 9), _three(fields, "Offset", path, 3)
    if matrix is None or offset is None:
        raise refusal(
            "metaimage.no_orientation",
            path,
            f"has no {'TransformMatrix' if matrix is None else 'Offset'}, so that its place is not known.",
            remedy="Write the volume again from the original images; ITK and SimpleITK write both.",
        )
    affine = np.eye(4)
    rows = np.asarray(matrix).reshape(3, 3)
    lengths = np.linalg.norm(rows, axis=1)
    if np.isfinite(rows).all() and not np.allclose(lengths, 1.0, atol=1e-3):
        raise refusal(
            "metaimage.bad_matrix",
            path,
            f"has TransformMatrix rows of lengths {np.round(lengths, 4).tolist()}; each must be 1.",
            remedy="Put lengths into ElementSpacing and directions into TransformMatrix.",
        )
    with np.errstate(invalid="ignore"):
        affine[:3, :3] = (rows / lengths[:, None]).T * np.asarray(spacing)
    affine[:3, 3] = offset
    return grid_of(affine, shape, path)


def _source(fields: Mapping[str, str], shape: Shape, end: int, path: Path) -> VoxelStream:
    kind = fields.get("ElementType", "")
    if kind not in _TYPES:
        raise refusal(
            "metaimage.element_type",
            path,
            f"has ElementType = {kind or '(missing)'}; allowed are {', '.join(_TYPES)}.",
            remedy="Write the volume as MET_SHORT (images) or MET_UCHAR (label maps).",
        )
    if not _flag(fields, "BinaryData", path, default=True):
        raise refusal("metaimage.text_data", path, "holds its voxels as text.", remedy=_AGAIN)
    packed = _flag(fields, "CompressedData", path, default=False)
    big = _flag(fields, "BinaryDataByteOrderMSB", path, default=False)
    local = fields["ElementDataFile"].upper() == "LOCAL"
    beside = (
        path
        if local
        else data_file(
            fields["ElementDataFile"], path, outside="metaimage.outside_folder", missing="metaimage.missing_data"
        )
    )
    source = VoxelStream(
        path=beside,
        packing="zlib" if packed else "raw",
        dtype=np.dtype(_TYPES[kind]).newbyteorder(">" if big else "<"),
        shape=shape,
        codes=_CODES,
        offset=end if local else 0,
    )
    return _after_header_size(source, fields, path)


def _after_header_size(source: VoxelStream, fields: Mapping[str, str], path: Path) -> VoxelStream:
    sizes = _numbers(fields, "HeaderSize", path) or [0.0]
    if sizes == [0.0]:
        return source
    size = int(sizes[0]) if sizes[0].is_integer() else -2
    packing: Packing = source.packing
    if size < -1 or packing != "raw" or source.path == path:
        raise refusal(
            "metaimage.header_size",
            path,
            f"has HeaderSize = {fields['HeaderSize']}; only raw data in its own file may have one (-1 or more).",
            remedy=_AGAIN,
        )
    # -1: the voxels are the last bytes of the file.
    start = source.path.stat().st_size - source.num_bytes if size == -1 else size
    return VoxelStream(source.path, packing, source.dtype, source.shape, source.codes, offset=max(start, 0))


def _flag(fields: Mapping[str, str], key: str, path: Path, *, default: bool) -> bool:
    text = fields.get(key, str(default)).lower()
    if text not in ("true", "false", "1", "0"):
        raise refusal("metaimage.bad_header", path, f"has {key} = {text}; True or False is allowed.", remedy=_AGAIN)
    return text in ("true", "1")


def _three(fields: Mapping[str, str], key: str, path: Path, count: int) -> list[float] | None:
    values = _numbers(fields, key, path)
    if values is not None and len(values) != count:
        raise refusal(
            "metaimage.bad_header", path, f"has {key} = {fields[key]}; {count} numbers are needed.", remedy=_AGAIN
        )
    return values


def _numbers(fields: Mapping[str, str], key: str, path: Path) -> list[float] | None:
    if key not in fields:
        return None
    try:
        return [float(value) for value in fields[key].split()]
    except ValueError:
        raise refusal(
            "metaimage.bad_header", path, f"has {key} = {fields[key]}; numbers are needed.", remedy=_AGAIN
        ) from None
