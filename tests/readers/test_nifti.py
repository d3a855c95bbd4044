"""NIfTI: headers are changed byte by byte with nibabel's header class, and every lie is refused."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from voxray.core.errors import DataError
from voxray.core.volume import Volume
from voxray.readers import describe, read_label_map, read_volume

Image: Any = nib.Nifti1Image
Image2: Any = nib.Nifti2Image
nibabel: Any = nib
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE = np.array([[0.7, 0, 0, -30], [0, 0.8, 0, 12], [0, 0, 2.5, 400], [0, 0, 0, 1]])
VOXELS = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)


def save(
    path: Path, voxels: NDArray[Any] = VOXELS, affine: NDArray[Any] = AFFINE, image: Any = Image, **changes: Any
) -> Path:
    """A NIfTI file by nibabel, with header fields overwritten afterwards."""
    made = image(voxels, affine)
    made.set_qform(affine, 1)
    made.set_sform(affine, 1)
    data = bytearray(made.to_bytes())
    header = made.header.__class__(bytes(data[: made.header.sizeof_hdr]), check=False)
    for name, value in changes.items():
        header[name] = value
    data[: made.header.sizeof_hdr] = header.binaryblock
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def values_at(volume: Volume, points_lps: NDArray[Any]) -> list[int]:
    """The voxels in which world points lie."""
    places = np.floor(volume.grid.to_voxel(points_lps)).astype(int)
    return [int(volume.voxels[tuple(place)]) for place in places]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("image", [Image, Image2])
def test_voxels_and_world_are_those_of_nibabel(tmp_path: Path, name: str, image: Any) -> None:
    volume = read_volume(save(tmp_path / name, image=image))
    assert (volume.voxels == VOXELS).all()
    np.testing.assert_allclose(volume.grid.affine, RAS_TO_LPS @ AFFINE, atol=1e-6)


ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_one_image_in_any_of_48_orientations_has_one_world(tmp_path: Path, code: str) -> None:
    assert len(ORIENTATIONS) == 48
    image = Image(VOXELS, AFFINE)
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(AFFINE), nibabel.orientations.axcodes2ornt(tuple(code))
        )
    )
    volume = read_volume(save(tmp_path / "a.nii.gz", np.asarray(turned.dataobj), turned.affine))
    assert volume.grid.orientation == code
    index = np.argwhere(np.ones_like(VOXELS))
    world = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    assert values_at(volume, world * [-1, -1, 1]) == VOXELS.ravel().tolist()


@settings(max_examples=40)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    mirrored=st.booleans(),
    forms=st.sampled_from([(1, 1), (1, 0), (0, 2)]),
)
def test_oblique_grids_keep_their_world(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, ...],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    mirrored: bool,
    forms: tuple[int, int],
) -> None:
    affine = np.eye(4)
    rotation = nibabel.eulerangles.euler2mat(*np.radians(angles))
    affine[:3, :3] = rotation * spacing * [1, 1, -1 if mirrored else 1]
    affine[:3, 3] = origin
    path = tmp_path_factory.mktemp("oblique") / "a.nii"
    grid = read_volume(save(path, affine=affine, qform_code=forms[0], sform_code=forms[1])).grid
    # A qform's quaternion in float32 loses half of its digits near a turn of 180 degrees.
    tolerance = 1e-3 if forms[1] else 1e-3 * max(spacing) + 2e-3
    np.testing.assert_allclose(grid.affine, RAS_TO_LPS @ affine, atol=tolerance)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_in_both_byte_orders(tmp_path: Path, dtype: str, order: Literal["<", ">"]) -> None:
    voxels = np.arange(120).reshape(6, 5, 4).astype(np.dtype(dtype).newbyteorder(order))
    header: Any = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(voxels.dtype)
    image = Image(voxels, AFFINE, header)
    image.set_sform(AFFINE, 1)
    image.to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.voxels.ravel().tolist() == list(range(120))
    assert describe(tmp_path / "a.nii").dtype == np.dtype(dtype).name


@pytest.mark.parametrize(
    ("slope", "intercept", "wanted"),
    [(np.nan, 7.0, 50), (0.0, 7.0, 50), (1.0, -1024.0, -974), (2.0, 1.0, 101), (0.25, 0.0, 12), (1.0, 0.0, 50)],
)
def test_scaling(tmp_path: Path, slope: float, intercept: float, wanted: int) -> None:
    path = save(tmp_path / "a.nii", np.full((2, 2, 2), 50, np.int16), scl_slope=slope, scl_inter=intercept)
    assert (read_volume(path).voxels == wanted).all()


@pytest.mark.parametrize(("unit", "factor"), [(0, 1.0), (1, 1e3), (2, 1.0), (3, 1e-3), (10, 1.0)])
@pytest.mark.parametrize("forms", [(1, 0), (0, 1)])
def test_lengths_come_out_in_millimetres(tmp_path: Path, unit: int, factor: float, forms: tuple[int, int]) -> None:
    affine = np.diag([1 / factor, 1 / factor, 1 / factor, 1.0]) @ AFFINE
    path = save(tmp_path / "a.nii", affine=affine, xyzt_units=unit, qform_code=forms[0], sform_code=forms[1])
    info = describe(path)
    np.testing.assert_allclose(info.spacing_mm, (0.7, 0.8, 2.5), rtol=1e-5)
    np.testing.assert_allclose(info.origin_mm, (30, -12, 400), rtol=1e-5)
    assert any("converted" in warning for warning in info.warnings) == (factor != 1.0)


def test_a_single_volume_may_be_written_as_4d(tmp_path: Path) -> None:
    assert (read_volume(save(tmp_path / "a.nii", VOXELS[..., None, None])).voxels == VOXELS).all()


def test_the_content_tells_whether_a_file_is_packed(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii")
    plain.rename(tmp_path / "b.nii.gz")
    info = describe(tmp_path / "b.nii.gz", pixels=True)
    assert info.range_hu == (0, 119)
    assert "content" in info.warnings[0]


def test_the_sform_wins_and_the_disagreement_is_told(tmp_path: Path) -> None:
    image = Image(VOXELS, AFFINE)
    image.set_sform(AFFINE, 1)
    moved = AFFINE.copy()
    moved[0, 3] += 5
    image.set_qform(moved, 1)
    image.to_filename(tmp_path / "a.nii")
    info = describe(tmp_path / "a.nii")
    assert info.origin_mm == pytest.approx((30, -12, 400))
    assert info.warnings == ("qform and sform place the volume differently; the sform was followed",)
    assert describe(save(tmp_path / "b.nii")).warnings == ()


def test_pixdim_against_the_sform_is_told(tmp_path: Path) -> None:
    info = describe(save(tmp_path / "a.nii", pixdim=[1, -0.7, 0.8, 2.5, 1, 1, 1, 1]))
    assert info.spacing_mm == pytest.approx((0.7, 0.8, 2.5))
    assert "pixdim" in info.warnings[0]


DIM = [3, 6, 5, 4, 1, 1, 1, 1]
PIXDIM = [1, 0.7, 0.8, 2.5, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("nifti.bad_magic", {"magic": b"XXXX"}),
        ("nifti.bad_magic", {"magic": b""}),
        ("nifti.pair", {"magic": b"ni1"}),
        ("nifti.bad_dim", {"dim": [9, *DIM[1:]]}),
        ("nifti.bad_dim", {"dim": [0, *DIM[1:]]}),
        ("nifti.not_3d", {"dim": [2, 30, 4, 1, 1, 1, 1, 1]}),
        ("nifti.four_d", {"dim": [4, 6, 5, 2, 2, 1, 1, 1]}),
        ("nifti.four_d", {"dim": [5, 6, 5, 2, 1, 2, 1, 1]}),
        ("grid.empty", {"dim": [3, 6, -5, 4, 1, 1, 1, 1]}),
        ("grid.empty", {"dim": [3, 6, 5, 0, 1, 1, 1, 1]}),
        ("grid.too_large", {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}),
        ("nifti.truncated", {"dim": [3, 1200, 1200, 1200, 1, 1, 1, 1]}),
        ("nifti.truncated", {"dim": [3, 6, 5, 5, 1, 1, 1, 1]}),
        ("nifti.longer", {"dim": [3, 6, 5, 3, 1, 1, 1, 1]}),
        ("nifti.datatype", {"datatype": 128, "bitpix": 24}),
        ("nifti.datatype", {"datatype": 32, "bitpix": 64}),
        ("nifti.datatype", {"datatype": 1, "bitpix": 1}),
        ("nifti.datatype", {"datatype": -9510}),
        ("nifti.datatype", {"bitpix": 8}),
        ("nifti.bad_offset", {"vox_offset": 0}),
        ("nifti.bad_offset", {"vox_offset": np.nan}),
        ("nifti.bad_offset", {"vox_offset": 352.5}),
        ("nifti.bad_scaling", {"scl_slope": np.inf, "scl_inter": 0}),
        ("nifti.bad_scaling", {"scl_slope": 1, "scl_inter": np.nan}),
        ("nifti.bad_units", {"xyzt_units": 7}),
        ("nifti.no_orientation", {"qform_code": 0, "sform_code": 0}),
        ("nifti.bad_pixdim", {"sform_code": 0, "pixdim": [1, 0.7, 0.8, 0, 1, 1, 1, 1]}),
        ("nifti.bad_pixdim", {"sform_code": 0, "pixdim": [1, 0.7, -0.8, 2.5, 1, 1, 1, 1]}),
        ("nifti.bad_pixdim", {"sform_code": 0, "pixdim": [1, 0.7, np.nan, 2.5, 1, 1, 1, 1]}),
        ("nifti.bad_qform", {"sform_code": 0, "quatern_b": 3.0}),
        ("grid.not_finite", {"sform_code": 0, "qoffset_x": np.inf}),
        ("grid.not_finite", {"srow_x": [np.nan, 0, 0, 0]}),
        ("grid.too_far", {"srow_x": [0.7, 0, 0, 1e38]}),
        ("grid.spacing", {"srow_z": [0, 0, 0, 400]}),
        ("grid.spacing", {"srow_x": [700, 0, 0, 0]}),
        ("grid.singular", {"srow_x": [0.7, 0.8, 0, 0], "srow_y": [0.7, 0.8, 0, 0]}),
        ("grid.sheared", {"srow_y": [0, 0.8, 0.6, 0]}),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_lying_header_is_refused(tmp_path: Path, refused: Any, code: str, changes: Any, name: str) -> None:
    path = save(tmp_path / name, **changes)
    with refused(code):
        read_volume(path)
    with refused(code):
        read_label_map(path)


def test_headers_alone_tell_what_is_wrong_with_a_plain_file(tmp_path: Path, refused: Any) -> None:
    with refused("nifti.truncated"):
        describe(save(tmp_path / "a.nii", dim=[3, 6, 5, 5, 1, 1, 1, 1]))


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("nifti.empty", b""),
        ("nifti.not_nifti", b"\x1f\x8b"),
        ("nifti.not_nifti", b"abc"),
        ("nifti.not_nifti", bytes(2000)),
        ("nifti.not_nifti", b"\x1f\x8b" + bytes(2000)),
        ("nifti.truncated", (348).to_bytes(4, "little") + bytes(100)),
    ],
)
def test_what_is_no_nifti_is_refused(tmp_path: Path, refused: Any, code: str, data: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(data)
    with refused(code):
        read_volume(tmp_path / "a.nii.gz")


def test_damage_within_packed_data_is_refused(tmp_path: Path, refused: Any) -> None:
    path = save(tmp_path / "a.nii.gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # the checksum
    path.write_bytes(data)
    with refused("nifti.corrupt"):
        read_volume(path)


@settings(max_examples=150)
@given(place=st.integers(0, 347), value=st.integers(0, 255))
def test_any_byte_of_a_header_may_lie_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    path = save(tmp_path_factory.mktemp("fuzz") / "a.nii")
    data = bytearray(path.read_bytes())
    data[place] = value
    path.write_bytes(data)
    try:
        volume = read_volume(path)
    except DataError:
        return
    assert volume.voxels.shape == volume.grid.shape
    assert np.isfinite(volume.grid.affine).all()


@pytest.mark.parametrize("excess", [1.2e-7, 1e-6, 5e-6, 5e-5])
@pytest.mark.parametrize("vector", [(0, 0, 1), (0.6, 0, 0.8), (0.5, 0.5, 0.7071067811865476)])
def test_a_quaternion_a_little_longer_than_one_is_made_one_long(
    tmp_path: Path, excess: float, vector: tuple[float, ...]
) -> None:
    parts: Any = {f"quatern_{axis}": part * (1 + excess) for axis, part in zip("bcd", vector, strict=True)}
    path = save(tmp_path / "a.nii", sform_code=0, **parts)
    rotation = nibabel.quaternions.quat2mat([0, *vector])
    np.testing.assert_allclose(
        read_volume(path).grid.affine[:3, :3], RAS_TO_LPS[:3, :3] @ rotation * [0.7, 0.8, 2.5], atol=1e-6
    )
    told = [text for text in describe(path).warnings if "quaternion" in text]
    assert bool(told) == (excess > 2e-7)


@pytest.mark.parametrize("length", [1.0002, 1.1, float("nan"), float("inf")])
def test_a_quaternion_that_is_none_is_refused(tmp_path: Path, refused: Any, length: float) -> None:
    with refused("nifti.bad_qform"):
        read_volume(save(tmp_path / "a.nii", sform_code=0, quatern_d=length))


def test_beside_an_sform_a_rounded_quaternion_is_no_disagreement(tmp_path: Path) -> None:
    turned = AFFINE * np.array([-1, -1, 1, 1])[:, None]
    assert describe(save(tmp_path / "a.nii", affine=turned, quatern_d=1 + 3e-6)).warnings == ()


@pytest.mark.parametrize(("qfac", "sign"), [(-1.0, -1), (0.0, 1), (1.0, 1)])
def test_qfac_below_zero_turns_z_over(tmp_path: Path, qfac: float, sign: int) -> None:
    grid = read_volume(save(tmp_path / "a.nii", sform_code=0, pixdim=[qfac, 0.7, 0.8, 2.5, 0, 0, 0, 0])).grid
    assert grid.affine[2, 2] == pytest.approx(sign * 2.5)
