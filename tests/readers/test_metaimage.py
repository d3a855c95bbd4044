"""MetaImage against SimpleITK reading the same file, and headers that must not be followed."""

from __future__ import annotations

import itertools
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from voxray.core.errors import DataError
from voxray.readers import describe, read_label_map, read_volume

VOXELS = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4) - 60
DIRECTIONS = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


def rotation(x: float, y: float, z: float) -> NDArray[np.float64]:
    def turn(axis: int, angle: float) -> NDArray[np.float64]:
        matrix, (i, j) = np.eye(3), [other for other in range(3) if other != axis]
        matrix[i, i] = matrix[j, j] = np.cos(angle)
        matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
        return matrix

    return turn(0, x) @ turn(1, y) @ turn(2, z)


def by_itk(path: Path, direction: NDArray[Any], *, packed: bool = False) -> Any:
    """Writes `VOXELS` with SimpleITK, and gives what SimpleITK reads back."""
    image: Any = SimpleITK.GetImageFromArray(VOXELS.T)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-30.5, 12.25, 400))
    image.SetDirection(direction.ravel().tolist())
    SimpleITK.WriteImage(image, str(path), packed)
    return SimpleITK.ReadImage(str(path))


def assert_same(path: Path, image: Any) -> None:
    volume = read_volume(path)
    assert (volume.voxels == SimpleITK.GetArrayFromImage(image).T).all()
    for index in itertools.product((0, 5), (0, 4), (0, 3)):
        itk = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(volume.grid.to_world(np.array([index]) + 0.5)[0], itk, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_48_orientations_have_itks_world(tmp_path: Path, direction: NDArray[Any]) -> None:
    assert len(DIRECTIONS) == 48
    assert_same(tmp_path / "a.mhd", by_itk(tmp_path / "a.mhd", direction))


@settings(max_examples=30)
@given(angles=st.tuples(*[st.floats(-3, 3)] * 3), name=st.sampled_from(["a.mhd", "a.mha"]), packed=st.booleans())
def test_oblique_volumes_have_itks_world(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple[float, float, float], name: str, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("oblique") / name
    assert_same(path, by_itk(path, rotation(*angles), packed=packed))


def write(folder: Path, data: bytes | None = None, name: str = "a.mhd", **changes: str | None) -> Path:
    """A header with its data beside it; a change of None leaves a field out."""
    fields: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "-30 12 400",
        "ElementSpacing": "0.7 0.8 2.5",
        "DimSize": "6 5 4",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "a.raw",
    }
    last = changes.pop("ElementDataFile", fields.pop("ElementDataFile"))
    fields |= changes
    if last is not None:
        fields["ElementDataFile"] = last
    path = folder / name
    path.write_text("".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None))
    (folder / "a.raw").write_bytes(VOXELS.astype("<i2").T.tobytes() if data is None else data)
    return path


def test_the_plain_file_reads(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path))
    assert (volume.voxels == VOXELS).all()
    assert volume.grid.orientation == "LPS"
    assert describe(tmp_path / "a.mhd").num_files == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"Offset": None, "Position": "-30 12 400"},
        {"Offset": None, "Origin": "-30 12 400"},
        {"TransformMatrix": None, "Rotation": "1 0 0 0 1 0 0 0 1"},
        {"TransformMatrix": None, "Orientation": "1 0 0 0 1 0 0 0 1"},
        {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "False"},
        {"ElementSpacing": None, "ElementSize": "0.7 0.8 2.5"},
        {"BinaryDataByteOrderMSB": None, "BinaryData": None, "CompressedData": None, "ObjectType": None},
        {"AnatomicalOrientation": "RAI", "CenterOfRotation": "0 0 0", "Comment": "x = y"},
        {"ElementNumberOfChannels": "1"},
    ],
)
def test_synonyms_and_defaults_are_those_of_itk(tmp_path: Path, changes: Any) -> None:
    path = write(tmp_path, **changes)
    assert_same(path, SimpleITK.ReadImage(str(path)))


@pytest.mark.parametrize("size", [0, 7, -1])
def test_header_size_tells_where_the_voxels_start(tmp_path: Path, size: int) -> None:
    data = b"x" * (7 if size else 0) + VOXELS.astype("<i2").T.tobytes()
    assert_same(write(tmp_path, data, HeaderSize=str(size)), SimpleITK.ReadImage(str(tmp_path / "a.mhd")))


@pytest.mark.parametrize(
    "kind",
    [
        "CHAR",
        "UCHAR",
        "SHORT",
        "USHORT",
        "INT",
        "UINT",
        "LONG",
        "ULONG",
        "LONG_LONG",
        "ULONG_LONG",
        "FLOAT",
        "DOUBLE",
    ],
)
@pytest.mark.parametrize("big", [False, True])
def test_every_type_in_both_byte_orders(tmp_path: Path, kind: str, big: bool) -> None:
    dtype = {
        "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4",
        "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
    }[kind]  # fmt: skip
    voxels = (VOXELS + 60).T.astype(np.dtype(dtype).newbyteorder(">" if big else "<"))
    path = write(tmp_path, voxels.tobytes(), ElementType=f"MET_{kind}", BinaryDataByteOrderMSB=str(big))
    assert (read_label_map(path).voxels == VOXELS + 60).all()


def test_what_is_ignored_is_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text("stray\n# a remark\n\n" + path.read_text())
    assert describe(path).warnings == ("header line 1 has no '=' and was ignored",)
    assert "ElementSize" in describe(write(tmp_path, ElementSpacing=None, ElementSize="1 1 1")).warnings[0]


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("metaimage.not_image", {"ObjectType": "Tube"}),
        ("metaimage.not_3d", {"NDims": "2", "DimSize": "30 4"}),
        ("metaimage.not_3d", {"NDims": "3", "DimSize": "30 4"}),
        ("metaimage.not_3d", {"NDims": None}),
        ("metaimage.not_3d", {"DimSize": None}),
        ("metaimage.not_3d", {"NDims": "4", "DimSize": "6 5 2 2"}),
        ("metaimage.bad_header", {"DimSize": "6 5 x"}),
        ("metaimage.bad_header", {"DimSize": "6 5 4.5"}),
        ("metaimage.bad_header", {"DimSize": "6 5 inf"}),
        ("metaimage.bad_header", {"ElementSpacing": "1 1"}),
        ("metaimage.bad_header", {"CompressedData": "perhaps"}),
        ("metaimage.bad_header", {"ElementDataFile": None}),
        ("grid.empty", {"DimSize": "6 5 0"}),
        ("grid.empty", {"DimSize": "6 -5 4"}),
        ("grid.too_large", {"DimSize": "30000 30000 30000"}),
        ("metaimage.channels", {"ElementNumberOfChannels": "3"}),
        ("metaimage.no_spacing", {"ElementSpacing": None}),
        ("grid.spacing", {"ElementSpacing": "-0.7 0.8 2.5"}),
        ("grid.spacing", {"ElementSpacing": "0 0.8 2.5"}),
        ("grid.spacing", {"ElementSpacing": "nan 0.8 2.5"}),
        ("metaimage.no_orientation", {"TransformMatrix": None}),
        ("metaimage.no_orientation", {"Offset": None}),
        ("metaimage.bad_matrix", {"TransformMatrix": "2 0 0 0 1 0 0 0 1"}),
        ("metaimage.bad_matrix", {"TransformMatrix": "0 0 0 0 1 0 0 0 1"}),
        ("grid.not_finite", {"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}),
        ("grid.not_finite", {"Offset": "0 0 inf"}),
        ("grid.singular", {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}),
        ("grid.sheared", {"TransformMatrix": "1 0 0 0 1 0 0 0.6 0.8"}),
        ("metaimage.element_type", {"ElementType": "MET_FOO"}),
        ("metaimage.element_type", {"ElementType": None}),
        ("metaimage.text_data", {"BinaryData": "False"}),
        ("metaimage.header_size", {"HeaderSize": "-2"}),
        ("metaimage.header_size", {"HeaderSize": "nan"}),
        ("metaimage.header_size", {"HeaderSize": "-1", "CompressedData": "True"}),
        ("metaimage.outside_folder", {"ElementDataFile": "/etc/passwd"}),
        ("metaimage.outside_folder", {"ElementDataFile": "../a.raw"}),
        ("metaimage.outside_folder", {"ElementDataFile": "./a.raw"}),
        ("metaimage.outside_folder", {"ElementDataFile": "sub/a.raw"}),
        ("metaimage.outside_folder", {"ElementDataFile": "sub\\a.raw"}),
        ("metaimage.outside_folder", {"ElementDataFile": "C:a.raw"}),
        ("metaimage.outside_folder", {"ElementDataFile": ".."}),
        ("metaimage.outside_folder", {"ElementDataFile": ""}),
        ("metaimage.outside_folder", {"ElementDataFile": "LIST"}),
        ("metaimage.outside_folder", {"ElementDataFile": "a%03d.raw 1 4 1"}),
        ("metaimage.missing_data", {"ElementDataFile": "b.raw"}),
        ("metaimage.truncated", {"DimSize": "6 5 5"}),
        ("metaimage.longer", {"DimSize": "6 5 3"}),
        ("metaimage.truncated", {"HeaderSize": "1"}),
        ("metaimage.corrupt", {"CompressedData": "True"}),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, refused: Any, code: str, changes: Any) -> None:
    with refused(code):
        read_volume(write(tmp_path, **changes))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_zraw_is_refused(tmp_path: Path, refused: Any, share: float) -> None:
    data = zlib.compress(VOXELS.astype("<i2").T.tobytes())
    with refused("metaimage.truncated"):
        read_volume(write(tmp_path, data[: int(len(data) * share)], CompressedData="True"))


def test_a_damaged_zraw_is_refused(tmp_path: Path, refused: Any) -> None:
    data = bytearray(zlib.compress(VOXELS.astype("<i2").T.tobytes()))
    data[-1] ^= 1
    with refused("metaimage.corrupt"):
        read_volume(write(tmp_path, bytes(data), CompressedData="True"))


def test_a_header_that_is_no_text_is_refused(tmp_path: Path, refused: Any) -> None:
    path = write(tmp_path)
    path.write_bytes(b"\xff\xfe = 1\n" + path.read_bytes())
    with refused("metaimage.bad_header"):
        read_volume(path)
    path.write_bytes(bytes(100_000))
    with refused("metaimage.bad_header"):
        read_volume(path)


@settings(max_examples=150)
@given(place=st.integers(0, 250), value=st.integers(0, 255))
def test_any_byte_of_a_header_may_lie_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    path = write(tmp_path_factory.mktemp("fuzz"))
    data = bytearray(path.read_bytes())
    data[min(place, len(data) - 1)] = value
    path.write_bytes(data)
    try:
        volume = read_volume(path)
    except DataError:
        return
    assert volume.voxels.shape == volume.grid.shape


@pytest.mark.parametrize("disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_a_data_file_is_found_whatever_the_normal_form_of_its_name(tmp_path: Path, disk: Any, written: Any) -> None:
    header = tmp_path / unicodedata.normalize(disk, "Zoë.mhd")
    name = unicodedata.normalize(written, "Zoë.raw")
    lines = "\ufeffNDims = 3\nDimSize = 4 3 2\nOffset = 1 2 3\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    lines += f"ElementSpacing = 1 1 2\nElementType = MET_SHORT\nElementDataFile = {name}\n"
    header.write_text(lines, encoding="utf-8")
    voxels = np.arange(24, dtype="<i2")
    (tmp_path / unicodedata.normalize(disk, "Zoë.raw")).write_bytes(voxels.tobytes())
    for path in (header, header.with_name(unicodedata.normalize(written, "Zoë.mhd"))):
        assert (read_volume(path).voxels.ravel(order="F") == voxels).all()
    local = tmp_path / "a.mha"
    local.write_bytes(lines.replace(name, "LOCAL").encode() + voxels.tobytes())
    assert (read_volume(local).voxels.ravel(order="F") == voxels).all()
