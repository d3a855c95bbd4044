"""NRRD (.nrrd, .nhdr, .seg.nrrd): the header is parsed here, and names no file outside its own folder.

The space must be one of the three patient spaces, because else the orientation would be a guess. A further axis
without a direction (the layers of a segmentation, the components of a vector) may only have size 1.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from voxray.core.volume import Grid, Shape
from voxray.readers.beside import data_file
from voxray.readers.geometry import grid_of, shape_of
from voxray.readers.refusals import refusal
from voxray.readers.stored import Stored
from voxray.readers.streams import Packing, StreamCodes, VoxelStream, check_length, read_slices

_CODES = StreamCodes("nrrd.truncated", "nrrd.corrupt", "nrrd.longer")
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_PACKINGS: dict[str, Packing] = {"raw": "raw", "gzip": "zlib", "gz": "zlib", "bzip2": "bzip2", "bz2": "bzip2"}
_TO_LPS = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "lps": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
_MAX_HEADER = 1 << 20
_AGAIN = "Write the volume again, for instance with 3D Slicer or SimpleITK."


def read_nrrd(path: Path) -> Stored:
    """The checked header of an NRRD file, with its voxels behind it."""
    fields, end = _fields(path)
    sizes, directions = _axes(fields, path)
    shape = shape_of(sizes, path)
    source = _source(fields, shape, end, path)
    grid = _grid(fields, directions, shape, path)
    check_length(source)
    return Stored(
        path=path,
        format="NRRD",
        grid=grid,
        dtype=source.dtype.name,
        slices=partial(read_slices, source),
        files=tuple(dict.fromkeys((path, source.path))),
    )


def segment_names(path: Path) -> dict[int, str]:
    """Label value -> name, as 3D Slicer writes them into the header of a segmentation; nothing where it does not."""
    with path.open("rb") as file:
        header = file.read(_MAX_HEADER).partition(b"\n\n")[0].decode("utf-8", "replace")
    pairs = re.findall(r"^Segment(\d+)_(Name|LabelValue):=(.*?)\r?$", header, re.MULTILINE)
    found: dict[str, dict[str, str]] = {}
    for number, key, value in pairs:
        found.setdefault(number, {})[key] = value.strip()
    whole = [one for one in found.values() if len(one) == 2 and one["LabelValue"].isdecimal()]
    return {int(one["LabelValue"]): one["Name"] for one in whole}


def named_data(path: Path) -> str | None:
    """The data file that a header names, as it is written; None where it holds the voxels itself."""
    fields, _ = _fields(path)
    return fields.get("data file", fields.get("datafile"))


def _fields(path: Path) -> tuple[dict[str, str], int | None]:
    """The header's fields, and the byte after its empty line; None where the header is the whole file."""
    with path.open("rb") as file:
        start = file.read(_MAX_HEADER)
    # The mark that an editor may put at the start is no part of the header.
    text = start.removeprefix(BOM_UTF8)
    lines = text.splitlines(keepends=True)
    magic = lines[0].strip() if lines else b""
    if not magic.startswith(b"NRRD"):
        raise refusal("nrrd.not_nrrd", path, "does not start with NRRD.", remedy=_AGAIN)
    if not re.fullmatch(rb"NRRD000[1-6]", magic):
        raise refusal("nrrd.version", path, f"is of version {magic[:12]!r}; 1 to 6 are known.", remedy=_AGAIN)
    fields: dict[str, str] = {}
    end = len(start) - len(text) + len(lines[0])
    for number, line in enumerate(lines[1:], start=2):
        end += len(line)
        if not line.strip():
            return fields, end
        field = _text(line, number, path)
        key, separator, value = field.partition(":")
        if field.startswith("#") or value.startswith("="):
            continue
        if not separator:
            raise refusal("nrrd.bad_header", path, f"line {number} is no field.", remedy=_AGAIN)
        fields[key.strip().lower()] = value.strip()
    if "data file" not in fields and "datafile" not in fields:
        raise refusal("nrrd.truncated", path, "ends within its header.", remedy="Copy or download the file again.")
    return fields, None


def _text(line: bytes, number: int, path: Path) -> str:
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise refusal("nrrd.bad_header", path, f"line {number} is not text.", remedy=_AGAIN) from None


def _axes(fields: Mapping[str, str], path: Path) -> tuple[list[int], list[list[float]]]:
    """The sizes and direction vectors of the three axes in space."""
    try:
        sizes = [int(size) for size in fields.get("sizes", "").split()]
    except ValueError:
        raise refusal("nrrd.bad_header", path, f"has sizes: {fields['sizes']}.", remedy=_AGAIN) from None
    if fields.get("dimension") != str(len(sizes)):
        raise refusal(
            "nrrd.bad_header",
            path,
            f"has dimension {fields.get('dimension')} but {len(sizes)} sizes.",
            remedy=_AGAIN,
        )
    if len(sizes) < 3:
        raise refusal(
            "nrrd.not_3d",
            path,
            f"has {len(sizes)} dimensions; 3 are needed.",
            remedy="Give a volume; a single slice needs a third side of 1.",
        )
    directions = _directions(fields, path)
    if len(directions) != len(sizes):
        raise refusal(
            "nrrd.bad_header", path, f"has {len(directions)} space directions for {len(sizes)} sizes.", remedy=_AGAIN
        )
    spatial = [axis for axis, direction in enumerate(directions) if direction is not None]
    layers = [size for axis, size in enumerate(sizes) if axis not in spatial]
    if len(spatial) != 3 or any(size != 1 for size in layers):
        raise refusal(
            "nrrd.layers",
            path,
            f"has the sizes {sizes}, of which {len(spatial)} lie in space; one 3D volume with one value per voxel "
            "is needed (overlapping segments are stored in layers).",
            remedy="Export one volume, or segments that do not overlap, as a single layer.",
        )
    return [sizes[axis] for axis in spatial], [direction for direction in directions if direction is not None]


def _directions(fields: Mapping[str, str], path: Path) -> list[list[float] | None]:
    text = fields.get("space directions")
    if fields.get("space", "").lower() not in _TO_LPS or text is None or "space origin" not in fields:
        raise refusal(
            "nrrd.no_orientation",
            path,
            f"has the space {fields.get('space', '(none)')!r}, space directions {text or '(none)'} and the space "
            f"origin {fields.get('space origin', '(none)')}; all three are needed, with left-posterior-superior, "
            "right-anterior-superior or left-anterior-superior as space.",
            remedy="Write the volume again from the original images, for instance with 3D Slicer.",
        )
    return [None if item == "none" else _vector(item, path) for item in re.findall(r"\([^)]*\)|none", text.lower())]


def _vector(text: str, path: Path) -> list[float]:
    try:
        values = [float(value) for value in text.strip().strip("()").split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise refusal("nrrd.bad_header", path, f"has the vector {text!r}; three numbers are needed.", remedy=_AGAIN)
    return values


def _grid(fields: Mapping[str, str], directions: list[list[float]], shape: Shape, path: Path) -> Grid:
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit.strip().lower() not in ("mm", "millimeter", "millimetre") for unit in units):
        raise refusal(
            "nrrd.units",
            path,
            f"has the space units {units}; millimetres are needed.",
            remedy="Write the volume again in millimetres.",
        )
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions).T
    affine[:3, 3] = _vector(fields["space origin"], path)
    to_lps = np.array([*_TO_LPS[fields["space"].lower()], 1.0])
    return grid_of(affine * to_lps[:, None], shape, path)


def _source(fields: Mapping[str, str], shape: Shape, end: int | None, path: Path) -> VoxelStream:
    kind, encoding = fields.get("type", "").lower(), fields.get("encoding", "").lower()
    code = next((code for code, names in _TYPES.items() if kind in names), None)
    if code is None:
        raise refusal(
            "nrrd.type",
            path,
            f"has the type {kind!r}; one integer or real number per voxel is needed.",
            remedy="Write the volume as short (images) or unsigned char (label maps).",
        )
    if encoding not in _PACKINGS:
        raise refusal(
            "nrrd.encoding",
            path,
            f"has the encoding {encoding!r}; allowed are {', '.join(sorted(_PACKINGS))}.",
            remedy=_AGAIN,
        )
    dtype = np.dtype(code)
    endian = fields.get("endian", "little" if dtype.itemsize == 1 else "").lower()
    if endian not in ("little", "big"):
        raise refusal("nrrd.bad_header", path, f"has endian: {endian!r}; little or big is needed.", remedy=_AGAIN)
    named = fields.get("data file", fields.get("datafile"))
    beside = (
        path if named is None else data_file(named, path, outside="nrrd.outside_folder", missing="nrrd.missing_data")
    )
    source = VoxelStream(
        path=beside,
        packing=_PACKINGS[encoding],
        dtype=dtype.newbyteorder("<" if endian == "little" else ">"),
        shape=shape,
        codes=_CODES,
        offset=end if named is None and end is not None else 0,
    )
    return _after_skips(source, fields, path)


def _after_skips(source: VoxelStream, fields: Mapping[str, str], path: Path) -> VoxelStream:
    """The source behind `line skip` (before unpacking) and `byte skip` (after it; -1: the file's last bytes)."""
    try:
        lines = int(fields.get("line skip", fields.get("lineskip", "0")))
        skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    except ValueError:
        lines, skip = -1, 0
    if lines < 0 or skip < -1 or (skip == -1 and source.packing != "raw"):
        raise refusal(
            "nrrd.skip",
            path,
            "has a line or byte skip that cannot be followed; 0 or more is allowed, or -1 byte with raw data.",
            remedy=_AGAIN,
        )
    offset = source.offset
    with source.path.open("rb") as file:
        file.seek(offset)
        offset += sum(len(file.readline(_MAX_HEADER)) for _ in range(min(lines, 1000)))
    if skip == -1:
        offset, skip = max(source.path.stat().st_size - source.num_bytes, offset), 0
    return VoxelStream(
        source.path, source.packing, source.dtype, source.shape, source.codes, offset=offset, skip=skip
    )
