"""Real and damaged files: each is read as it must be, or refused by its code."""

from __future__ import annotations

import csv
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from voxray.core.errors import DataError
from voxray.core.volume import Volume
from voxray.readers import describe, read_label_map, read_volume
from voxray.readers.dicom_pixels import decode

pytestmark = pytest.mark.data

NODULE_MM = np.array([[56.208, 86.343, -115.868]])
"""LIDC-IDRI-0001's nodule of 23.35 mm, from LUNA16's annotations.csv."""


def code_of(path: Path, *, is_label: bool = False) -> str | None:
    """The code by which a file is refused, in one line; None where it is read."""
    try:
        volume = read_label_map(path) if is_label else read_volume(path, accept_values=True)
    except DataError as error:
        refusal = error
    else:
        assert volume.voxels.shape == volume.grid.shape
        return None
    assert "\n" not in str(refusal)
    assert refusal.remedy
    return refusal.code


def in_ras(volume: Volume) -> NDArray[Any]:
    """The voxels turned and flipped to RAS by hand, for grids along the patient's axes."""
    letters = volume.grid.orientation
    order = [next(axis for axis, letter in enumerate(letters) if letter in pair) for pair in ("RL", "AP", "SI")]
    turned = volume.voxels.transpose(order)
    flips = tuple(slice(None, None, 1 if letters[axis] in "RAS" else -1) for axis in order)
    return turned[flips]


DERIVED = {
    "01_truncated_gzip.nii.gz": "nifti.truncated",
    "02_truncated_data.nii": "nifti.truncated",
    "03_empty_file.nii.gz": "nifti.empty",
    "04_garbage.nii.gz": "nifti.not_nifti",
    "06_bad_magic.nii": "nifti.bad_magic",
    "08_zero_pixdim_no_form.nii.gz": "nifti.no_orientation",
    "09_nan_sform.nii.gz": "grid.not_finite",
    "10_singular_sform.nii.gz": "grid.spacing",
    "11_no_forms.nii.gz": "nifti.no_orientation",
    "12_huge_dim.nii.gz": "grid.too_large",
    "13_dim0_is_9.nii.gz": "nifti.bad_dim",
    "15_units_micron.nii.gz": "nifti.no_orientation",
    "16_nan_voxels.nii.gz": "voxels.not_finite",
    "17_inf_voxel.nii.gz": "voxels.not_finite",
    "20_4d_two_volumes.nii.gz": "nifti.four_d",
    "32_label_float_fraction.nii.gz": "labels.fraction",
    "33_label_negative.nii.gz": "labels.negative",
    "42_sheared_sform.nii.gz": "grid.sheared",
    "mhd/52_missing_raw.mhd": "metaimage.missing_data",
    "mhd/53_short_raw.mhd": "metaimage.truncated",
    "mhd/55_dimsize_2d.mhd": "metaimage.not_3d",
    "mhd/56_unknown_element.mhd": "metaimage.element_type",
    "mhd/57_negative_spacing.mhd": "grid.spacing",
    "mhd/59_path_traversal.mhd": "metaimage.outside_folder",
}
"""Of `malformed/derived`; every other file is read."""

_ELSEWHERE = {"30_label_one_slice_short.nii.gz", "34_label_255.nii.gz"}
"""Sound by themselves: whoever pairs them with an image or a list of classes refuses them."""


def test_derived_files(shared_data: Path) -> None:
    folder = shared_data / "malformed" / "derived"
    expected = json.loads((folder / "EXPECTED.json").read_text())
    assert len(expected) > 60
    for name, verdict in expected.items():
        found = code_of(folder / name, is_label="label" in name or "spleen" in name)
        assert found == DERIVED.get(name), name
        if verdict.startswith("must fail"):
            assert found or name in _ELSEWHERE or "00_base_ct" in verdict, name
        if verdict.startswith("valid"):
            assert found is None or "clear error" in verdict, name


@pytest.mark.parametrize("kind", ["ct", "spleen"])
def test_one_image_in_seven_orientations(shared_data: Path, kind: str) -> None:
    folder = shared_data / "malformed" / "derived"
    read = read_volume if kind == "ct" else read_label_map
    base = read(folder / f"00_base_{kind}.nii.gz")
    assert base.grid.orientation == "RAS"
    turned = sorted(folder.glob(f"40_orient_*_{kind}.nii.gz"))
    assert len(turned) == 7
    for path in turned:
        volume = read(path)
        assert volume.grid.orientation == path.name.split("_")[2]
        assert (in_ras(volume) == base.voxels).all()
        corners = np.array([[0, 0, 0], volume.grid.shape], np.float64)
        mine, other = (grid.to_world(c) for grid, c in ((volume.grid, corners), (base.grid, corners_of(base))))
        np.testing.assert_allclose(np.sort(mine, axis=0), np.sort(other, axis=0), atol=1e-3)


def corners_of(volume: Volume) -> NDArray[np.float64]:
    return np.array([[0, 0, 0], volume.grid.shape], np.float64)


@pytest.mark.parametrize(
    "name",
    [
        "05_plain_nifti_named_gz.nii.gz",
        "07_negative_pixdim.nii.gz",
        "14_scl_slope_nan.nii.gz",
        "19_4d_singleton.nii.gz",
        "23_float64.nii.gz",
        "24_big_endian.nii.gz",
        "mhd/50_valid.mhd",
        "mhd/51_valid_zraw.mhd",
        "mhd/54_big_endian.mhd",
        "mhd/58_flipped_transformmatrix.mhd",
    ],
)
def test_the_same_image_in_other_clothes(shared_data: Path, name: str) -> None:
    folder = shared_data / "malformed" / "derived"
    base, volume = read_volume(folder / "00_base_ct.nii.gz"), read_volume(folder / name)
    assert (in_ras(volume) == base.voxels).all()
    mine, wanted = volume.grid.to_world(corners_of(volume)), base.grid.to_world(corners_of(base))
    np.testing.assert_allclose(np.sort(mine, axis=0), np.sort(wanted, axis=0), atol=1e-3)


def test_scaled_values_are_hounsfield_units(shared_data: Path) -> None:
    folder = shared_data / "malformed" / "derived"
    base = read_volume(folder / "00_base_ct.nii.gz").voxels
    scaled = read_volume(folder / "18_uint16_scl_inter_-1024.nii.gz").voxels
    assert (scaled == np.maximum(base, -1024)).all()


NIFTI_CODES = {
    "nifti-reader-js/5D_small.nii": "nifti.four_d",
    "nifti-reader-js/not-nifti.nii": "nifti.not_nifti",
    "nifti-rs_dtypes/complex/complex32.nii": "nifti.not_3d",
    "nifti-rs_dtypes/complex/complex64.nii": "nifti.not_3d",
    "nifti-rs_dtypes/rgb/3D.nii": "nifti.datatype",
    "nifti-rs_dtypes/rgb/4D.nii": "nifti.four_d",
    "nifti-rs_dtypes/rgba/4D.nii": "nifti.four_d",
    "nifti-rs_fuzz/crash-1.nii": "nifti.not_nifti",
    "nifti-rs_fuzz/crash-ed7d46344d7efb3b9f0c374d66d2e02f66cc447d.nii": "nifti.not_nifti",
}
METAIMAGE_READ = {
    "image10x10x10.mha",
    "image10x10x10.mhd",
    "image10x10x10-extra-stuff.mhd",
    "image5x6x7.mhd",
    "image5x6x7-with-123-spacing.mhd",
    "image5x6x7-no-spacing-with-123-size.mhd",
}
METAIMAGE_CODES = {
    "image128x256x3RGB.mhd": "metaimage.channels",
    "image128x256x4RGB.mhd": "metaimage.channels",
    "image5x6x7-no-spacing.mhd": "metaimage.no_spacing",
    "invalid_utf8.mhd": "metaimage.bad_header",
    "referring_to_system_file.mhd": "metaimage.outside_folder",
}
NRRD_CODES = {
    "image10x11x12_unsupported_version.nrrd": "nrrd.version",
    "BallBinary30x30x30_byteskip_minus_five.nhdr": "nrrd.skip",
    "BallBinary30x30x30_byteskip_minus_one_nifti.nhdr": "nrrd.skip",
    "BallBinary30x30x30_nifti.nhdr": "nrrd.longer",
    "test1d_ascii.nrrd": "nrrd.not_3d",
    "test2d_ascii.nrrd": "nrrd.not_3d",
    "test_customFields.nrrd": "nrrd.not_3d",
    "test_simple4d_raw.nrrd": "nrrd.no_orientation",
}


def test_volume_files_of_other_projects(shared_data: Path) -> None:
    corpora = shared_data / "malformed" / "corpora"
    seen = 0
    for path in sorted(corpora.rglob("*")):
        name, relative = path.name, str(path.relative_to(corpora))
        if not path.is_file():
            continue
        if name.endswith((".nii", ".nii.gz")):
            wanted = NIFTI_CODES.get(relative)
        elif name.endswith((".mhd", ".mha")):
            wanted = None if name in METAIMAGE_READ else METAIMAGE_CODES.get(name, "metaimage.not_3d")
        elif name.endswith((".nrrd", ".nhdr")):
            wanted = NRRD_CODES.get(name)
        else:
            continue
        assert code_of(path) == wanted, relative
        seen += 1
    assert seen > 50


def test_files_that_crashed_another_parser(shared_data: Path, tmp_path: Path) -> None:
    for number, path in enumerate((shared_data / "malformed" / "corpora" / "nifti-rs_fuzz").glob("crash*")):
        copy = tmp_path / f"{number}.nii"
        copy.write_bytes(path.read_bytes())
        assert code_of(copy) == "nifti.not_nifti"


@pytest.mark.parametrize(
    "kind", ["float32", "float64", "int16", "int32", "int64", "int8", "uint16", "uint32", "uint8"]
)
def test_every_type_holds_the_same_27_numbers(shared_data: Path, kind: str) -> None:
    path = shared_data / "malformed" / "corpora" / "nifti-rs_dtypes" / "27" / f"{kind}.nii"
    assert sorted(read_volume(path).voxels.ravel().tolist()) == list(range(27))


DICOM_CODES = {
    "cornerstone_no-pixel-data.dcm": "dicom.not_ct",
    "cornerstone_no-pixel-spacing.dcm": "dicom.not_ct",
    "fodicom_GH064.dcm": "dicom.not_ct",
    "fodicom_GH178.dcm": "dicom.no_pixels",
    "fodicom_GH179A.dcm": "dicom.no_pixels",
    "fodicom_GH179B.dcm": "dicom.no_pixels",
    "fodicom_GH184.dcm": "dicom.not_ct",
    "fodicom_GH340.dcm": "dicom.not_ct",
    "fodicom_GH610.dcm": "dicom.not_ct",
    "nibabel_slicethickness_empty_string.dcm": "dicom.not_ct",
    "pydicom_ExplVR_BigEndNoMeta.dcm": "dicom.not_ct",
    "pydicom_ExplVR_LitEndNoMeta.dcm": "dicom.not_ct",
    "pydicom_J2K_pixelrep_mismatch.dcm": None,
    "pydicom_MR_truncated.dcm": "dicom.not_ct",
    "pydicom_UN_sequence.dcm": "dicom.not_ct",
    "pydicom_badVR.dcm": "dicom.not_ct",
    "pydicom_empty_charset_LEI.dcm": "dicom.not_ct",
    "pydicom_meta_missing_tsyntax.dcm": "dicom.not_ct",
    "pydicom_nested_priv_SQ.dcm": "dicom.not_ct",
    "pydicom_no_meta.dcm": "dicom.not_dicom",
    "pydicom_no_meta_group_length.dcm": "dicom.not_ct",
    "pydicom_rtplan_truncated.dcm": "dicom.not_ct",
}


def test_dicom_files_of_other_projects(shared_data: Path) -> None:
    folder = shared_data / "malformed" / "corpora" / "dicom_bad"
    assert {path.name: code_of(path) for path in folder.glob("*.dcm")} == DICOM_CODES


SINGLE_CODES = {
    "pydicom_eCT_Supplemental.dcm": "dicom.not_hounsfield",
    "pydicom_explicit_VR-UN.dcm": "dicom.no_thickness",
}


def test_single_ct_files_in_every_transfer_syntax(shared_data: Path) -> None:
    folder = shared_data / "dicom_hard" / "single_ct"
    index = json.loads((folder / "index_pydicom3.0.2.json").read_text())
    names = sorted(path.name for path in folder.glob("*.dcm"))
    assert len(names) == 25
    for name in names:
        wanted = index[name]
        assert code_of(folder / name) == SINGLE_CODES.get(name), name
        syntax = str(pydicom.filereader.read_file_meta_info(folder / name).TransferSyntaxUID)
        pixels = decode(folder / name, syntax)
        assert pixels.shape == (wanted["frames"] or 1, wanted["rows"], wanted["cols"])
        if syntax.endswith(".51"):
            # Lossy 12-bit JPEG: decoders may round a value the other way (the index was made by libjpeg).
            assert abs(int(pixels.min()) - wanted["raw_min"]) <= 1
            assert abs(int(pixels.max()) - wanted["raw_max"]) <= 1
            assert pixels.mean() == pytest.approx(wanted["raw_mean"], abs=0.05)
        else:
            stored = pixels.reshape(-1, *pixels.shape[-2:]) if wanted["frames"] else pixels[0]
            digest = hashlib.sha1(np.ascontiguousarray(stored, np.int32).tobytes()).hexdigest()[:16]
            assert digest == wanted["sha1_int32"], name


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.97])
def test_cut_files_never_pass(shared_data: Path, tmp_path: Path, share: float) -> None:
    for path in sorted((shared_data / "dicom_hard" / "single_ct").glob("*.dcm")):
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[: int(len(data) * share)])
        assert code_of(tmp_path / path.name) is not None, path.name


@pytest.fixture
def unpack(shared_data: Path, tmp_path: Path) -> Any:
    def unpacked(name: str) -> Path:
        with tarfile.open(shared_data / "dicom_hard" / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        return next(path for path in tmp_path.iterdir() if path.is_dir())

    return unpacked


def test_real_tilt_and_a_real_missing_slice(unpack: Any) -> None:
    folder = unpack("dicom2nifti_failing_ct_2series")
    assert code_of(folder) == "dicom.no_files"
    assert code_of(folder / "gantrytilting") == "dicom.subfolders"
    with pytest.raises(DataError, match=r"14\.0 degrees") as raised:
        read_volume(folder / "gantrytilting" / "001")
    assert raised.value.code == "dicom.gantry_tilt"
    with pytest.raises(DataError, match=r"10\.000 mm between IM-0001-0009-0001\.dcm") as raised:
        read_volume(folder / "sliceincrement" / "001")
    assert raised.value.code == "dicom.missing_slice"


@pytest.mark.parametrize("name", ["panimg_dicom_4d", "panimg_dicom_4d_enhanced"])
def test_phases_are_refused_and_each_can_be_named(unpack: Any, name: str) -> None:
    folder = unpack(name)
    with pytest.raises(DataError, match="holds 19 CT series") as raised:
        read_volume(folder)
    assert raised.value.code == "dicom.several_series"
    uid = "1.1.1.1.1.1.11111.1.1.1.1111.1111.900000000000000000000000000003"
    assert read_volume(folder, series_uid=uid).grid.shape == (3, 2, 4)


def test_slope_and_intercept_that_change(unpack: Any) -> None:
    for name in ("panimg_dicom_intercept", "panimg_dicom_slope"):
        assert describe(unpack(name), pixels=True).shape == (3, 2, 2)


def test_an_enhanced_file_holds_what_its_slices_hold(unpack: Any, tmp_path: Path) -> None:
    folder = unpack("panimg_enhanced_multiframe")
    assert code_of(folder) == "dicom.four_d"
    enhanced = read_volume(folder / "volume.dcm")
    (folder / "volume.dcm").rename(tmp_path / "volume.dcm")
    series = read_volume(folder)
    assert series.grid.shape == (512, 512, 7)
    assert series.grid.is_close(enhanced.grid)
    assert (series.voxels == enhanced.voxels).all()


def test_a_legacy_conversion_holds_what_its_slices_hold(shared_data: Path) -> None:
    folder = shared_data / "dicom_hard" / "dcmqi_24x38x3"
    assert code_of(folder) == "dicom.subfolders"
    assert code_of(folder / "seg" / "label.seg") == "dicom.not_ct"
    slices = read_volume(folder / "image", accept_values=True)
    frames = read_volume(folder / "multiframe" / "mf.dcm", accept_values=True)
    assert (slices.voxels == frames.voxels).all()
    label = read_label_map(folder / "nrrd" / "label.nrrd")
    assert label.grid.is_close(slices.grid) == frames.grid.is_close(slices.grid)
    assert label.grid.shape == slices.grid.shape


def test_positions_count_not_slice_thickness(shared_data: Path) -> None:
    info = describe(shared_data / "dicom_hard" / "dcmqi_ct3slice_overlap", pixels=True)
    assert info.spacing_mm[2] == pytest.approx(1.0, abs=1e-6)
    assert "1 objects of modality SEG ignored" in info.warnings
    assert "slices are 1.25 mm thick and 1 mm apart; the distance counts" in info.warnings


def shell(volume: Volume, centre_mm: NDArray[Any], inner_mm: float, outer_mm: float) -> NDArray[np.int16]:
    """The HU of the voxels whose centres lie between two distances from a point in world space."""
    reach = outer_mm / np.asarray(volume.grid.spacing_mm)
    centre = volume.grid.to_voxel(centre_mm)[0]
    start = np.maximum(np.floor(centre - reach), 0).astype(int)
    stop = np.minimum(np.ceil(centre + reach), volume.grid.shape).astype(int)
    near = np.argwhere(np.ones(stop - start, bool)) + start
    distance = np.linalg.norm(volume.grid.to_world(near + 0.5) - centre_mm, axis=1)
    found: NDArray[np.int16] = volume.hounsfield[tuple(near[(inner_mm <= distance) & (distance < outer_mm)].T)]
    return found


def test_nodules_are_where_luna16_says(shared_data: Path) -> None:
    series = read_volume(shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom")
    assert series.grid.shape == (512, 512, 16)
    assert series.grid.spacing_mm == pytest.approx((0.703125, 0.703125, 2.5))
    folder = shared_data / "lidc" / "luna16_style"
    scans = [(series, NODULE_MM, 23.35)]
    with (folder / "annotations.csv").open() as file:
        for row in csv.DictReader(file):
            centre = np.array([[float(row[f"coord{axis}"]) for axis in "XYZ"]])
            volume = read_volume(folder / "subset0" / f"{row['seriesuid']}.mhd")
            scans.append((volume, centre, float(row["diameter_mm"])))
    assert len(scans) == 3
    for volume, centre, diameter in scans:
        # Soft tissue, with lung around it.
        assert -50 < shell(volume, centre, 0, diameter / 4).mean() < 150
        assert np.percentile(shell(volume, centre, 0.7 * diameter, 1.2 * diameter), 20) < -600


def test_lidcs_readers_drew_where_the_nodule_is(shared_data: Path) -> None:
    series = read_volume(shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom")
    drawn = read_label_map(shared_data / "lidc" / "LIDC-IDRI-0001_16sl_readercount.nii.gz")
    inside = np.argwhere(drawn.voxels == drawn.voxels.max()) + 0.5
    world = drawn.grid.to_world(inside)
    assert np.linalg.norm(world.mean(axis=0) - NODULE_MM[0]) < 3
    places = np.floor(series.grid.to_voxel(world)).astype(int)
    assert -200 < series.voxels[tuple(places.T)].mean() < 150


def test_labels_and_segments(shared_data: Path, refused: Any) -> None:
    folder = shared_data / "abdomen"
    labels, image = (
        read_label_map(folder / "TS_example_ct_labels117_fast.nii.gz"),
        read_volume(folder / "TS_example_ct.nii.gz"),
    )
    assert labels.grid.is_close(image.grid)
    assert np.count_nonzero(labels.voxels == 1) == 9668
    assert len(np.unique(labels.voxels)) == 62
    chest, segments = folder / "slicerio_CTChest4.nrrd", read_label_map(folder / "slicerio_Segmentation.seg.nrrd")
    assert segments.grid.is_close(read_volume(chest).grid)
    assert segments.voxels.max() == 7
    with refused("path.label_map"):
        read_volume(folder / "slicerio_Segmentation.seg.nrrd")
    with refused("nrrd.layers"):
        read_label_map(folder / "slicerio_SegmentationOverlapping.seg.nrrd")
