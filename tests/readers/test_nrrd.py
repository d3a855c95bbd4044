"""NRRD against SimpleITK reading the same file, and headers that must not be followed."""

from __future__ import annotations

import bz2
import gzip
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.core.errors import DataError
from voxray.readers import describe, read_label_map, read_volume

VOXELS = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
DATA = VOXELS.astype("<i2").T.tobytes()


def write(
    folder: Path, data: bytes = DATA, name: str = "a.nrrd", magic: str = "NRRD0005", **changes: str | None
) -> Path:
    """A file with its data behind the header, or beside it where a data file is named; None leaves a field out."""
    fields: dict[str, str | None] = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "6 5 4",
        "space_directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
        "endian": "little",
        "encoding": "raw",
        "space_origin": "(-30,12,400)",
        **changes,
    }
    lines = [f"{key.replace('_', ' ')}: {value}" for key, value in fields.items() if value is not None]
    text = "\n".join([magic, "# a remark", *lines, "key:=value: with a colon"]) + "\n"
    path = folder / name
    detached = fields.get("data_file") is not None
    path.write_bytes(text.encode() + (b"" if detached else b"\n" + data))
    if detached:
        (folder / "a.raw").write_bytes(data)
    return path


def assert_same(path: Path) -> None:
    image: Any = SimpleITK.ReadImage(str(path))
    volume = read_volume(path)
    assert (volume.voxels == SimpleITK.GetArrayFromImage(image).T).all()
    for index in itertools.product((0, 5), (0, 4), (0, 3)):
        itk = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(volume.grid.to_world(np.array([index]) + 0.5)[0], itk, atol=1e-6)


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "left-anterior-superior"])
@pytest.mark.parametrize(
    "directions",
    ["(0.7,0,0) (0,0.8,0) (0,0,2.5)", "(-0.7,0,0) (0,0,0.8) (0,2.5,0)", "(0.6,0.8,0) (-0.8,0.6,0) (0,0,-3)"],
)
def test_the_world_is_itks(tmp_path: Path, space: str, directions: str) -> None:
    assert_same(write(tmp_path, space=space, space_directions=directions))


@pytest.mark.parametrize("short", ["LPS", "RAS", "LAS"])
def test_short_names_of_spaces(tmp_path: Path, short: str) -> None:
    wanted = {"LPS": "LPS", "RAS": "RAS", "LAS": "LAS"}[short]
    assert describe(write(tmp_path, space=short)).orientation == wanted


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (DATA, {}),
        (gzip.compress(DATA), {"encoding": "gzip"}),
        (gzip.compress(DATA), {"encoding": "gz"}),
        (VOXELS.astype(">i2").T.tobytes(), {"endian": "big"}),
        (b"one\ntwo\n" + DATA, {"line_skip": "2"}),
        (b"one\n" + gzip.compress(b"xyz" + DATA), {"line_skip": "1", "byte_skip": "3", "encoding": "gzip"}),
        (b"xyz" + DATA, {"byte_skip": "-1"}),
        (DATA, {"data_file": "a.raw", "name": "a.nhdr"}),
        (gzip.compress(DATA), {"data_file": "a.raw", "name": "a.nhdr", "encoding": "gzip"}),
    ],
)
def test_encodings_and_skips_are_those_of_itk(tmp_path: Path, data: bytes, changes: Any) -> None:
    assert_same(write(tmp_path, data, **changes))


def test_bzip2(tmp_path: Path, refused: Any) -> None:
    data = bz2.compress(DATA)
    assert (read_volume(write(tmp_path, data, encoding="bzip2")).voxels == VOXELS).all()
    with refused("nrrd.truncated"):
        read_volume(write(tmp_path, data[:-20], encoding="bz2"))
    with refused("nrrd.corrupt"):
        read_volume(write(tmp_path, data[:50] + b"????" + data[54:], encoding="bz2"))


def test_a_layer_of_its_own_is_no_dimension(tmp_path: Path, refused: Any) -> None:
    one: Any = {"dimension": "4", "space_directions": "none (0.7,0,0) (0,0.8,0) (0,0,2.5)"}
    path = write(tmp_path, name="a.seg.nrrd", **one, sizes="1 6 5 4")
    assert (read_label_map(path).voxels == VOXELS).all()
    assert read_label_map(path).voxels.dtype == np.uint8
    with refused("path.label_map"):
        read_volume(path)
    with refused("nrrd.layers"):
        read_label_map(write(tmp_path, **one, sizes="2 6 5 2"))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("nrrd.not_nrrd", {"magic": "PK"}),
        ("nrrd.version", {"magic": "NRRD1004"}),
        ("nrrd.version", {"magic": "NRRD0009"}),
        ("nrrd.bad_header", {"dimension": "4"}),
        ("nrrd.bad_header", {"sizes": "6 5 x"}),
        ("nrrd.bad_header", {"space_directions": "(1,0,0) (0,1,0)"}),
        ("nrrd.bad_header", {"space_directions": "(1,0,0) (0,1) (0,0,1)"}),
        ("nrrd.bad_header", {"space_origin": "(0,a,0)"}),
        ("nrrd.bad_header", {"endian": None}),
        ("nrrd.bad_header", {"kinds": "domain\nnothing"}),
        ("nrrd.not_3d", {"dimension": "2", "sizes": "30 4"}),
        ("nrrd.layers", {"space_directions": "none (0,1,0) (0,0,1)"}),
        ("nrrd.no_orientation", {"space": None}),
        ("nrrd.no_orientation", {"space": "scanner-xyz"}),
        ("nrrd.no_orientation", {"space_origin": None}),
        ("nrrd.no_orientation", {"space_directions": None, "spacings": "1 1 1"}),
        ("nrrd.units", {"space_units": '"um" "um" "um"'}),
        ("nrrd.type", {"type": "block"}),
        ("nrrd.type", {"type": None}),
        ("nrrd.encoding", {"encoding": "ascii"}),
        ("nrrd.skip", {"byte_skip": "-5"}),
        ("nrrd.skip", {"byte_skip": "-1", "encoding": "gzip"}),
        ("nrrd.skip", {"line_skip": "x"}),
        ("nrrd.outside_folder", {"data_file": "/etc/passwd"}),
        ("nrrd.outside_folder", {"data_file": "../a.raw"}),
        ("nrrd.outside_folder", {"data_file": "LIST"}),
        ("nrrd.outside_folder", {"data_file": "a%d.raw 1 4 1"}),
        ("nrrd.missing_data", {"data_file": "b.raw"}),
        ("nrrd.truncated", {"sizes": "6 5 5"}),
        ("nrrd.longer", {"sizes": "6 5 3"}),
        ("nrrd.corrupt", {"encoding": "gzip"}),
        ("grid.empty", {"sizes": "6 5 0"}),
        ("grid.too_large", {"sizes": "30000 30000 30000"}),
        ("grid.spacing", {"space_directions": "(0,0,0) (0,1,0) (0,0,1)"}),
        ("grid.not_finite", {"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"}),
        ("grid.not_finite", {"space_origin": "(0,inf,0)"}),
        ("grid.singular", {"space_directions": "(1,0,0) (1,0,0) (0,0,1)"}),
        ("grid.sheared", {"space_directions": "(1,0,0) (0,1,0) (0,0.3,1)"}),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, refused: Any, code: str, changes: Any) -> None:
    with refused(code):
        read_volume(write(tmp_path, **changes))


def test_a_file_that_ends_in_its_header_is_refused(tmp_path: Path, refused: Any) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:150])
    with refused("nrrd.truncated"):
        read_volume(path)
    path.write_bytes(b"")
    with refused("nrrd.not_nrrd"):
        read_volume(path)


@settings(max_examples=150)
@given(place=st.integers(0, 230), value=st.integers(0, 255))
def test_any_byte_of_a_header_may_lie_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    path = write(tmp_path_factory.mktemp("fuzz"))
    data = bytearray(path.read_bytes())
    data[place] = value
    path.write_bytes(data)
    try:
        volume = read_volume(path)
    except DataError:
        return
    assert volume.voxels.shape == volume.grid.shape


def test_a_mark_before_the_header_is_no_part_of_it(tmp_path: Path) -> None:
    header = "\ufeffNRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\n"
    header += "space directions: (1,0,0) (0,1,0) (0,0,2)\nendian: little\nencoding: raw\nspace origin: (1,2,3)\n\n"
    voxels = np.arange(24, dtype="<i2")
    (tmp_path / "a.nrrd").write_bytes(header.encode() + voxels.tobytes())
    assert (read_volume(tmp_path / "a.nrrd").voxels.ravel(order="F") == voxels).all()
