"""Values that are no Hounsfield units are refused with their evidence; CT is not, whatever part it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from jaxtyping import Float64, Int16
from scipy import ndimage

from voxray.core.errors import DataError
from voxray.readers import describe, read_volume
from voxray.readers.plausibility import Fractions, judge

Scan = Float64[np.ndarray, "x y z"]
RNG = np.random.default_rng


def chest() -> Scan:
    """Air, a body of fat and muscle, two lungs, a spine; with noise."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 64, 24)), indexing="ij")
    scan = np.full(x.shape, -1000.0)
    scan[x**2 + (y / 0.7) ** 2 < 0.8] = -100
    scan[x**2 + (y / 0.7) ** 2 < 0.6] = 50
    scan[((abs(x) - 0.4) / 0.25) ** 2 + (y / 0.4) ** 2 < 1] = -850
    scan[(x / 0.1) ** 2 + ((y - 0.4) / 0.1) ** 2 < 1] = 700
    return np.asarray(scan + RNG(0).normal(0, 15, scan.shape) + 0 * z)


def organ(middle: float = 110, noise: float = 18) -> Scan:
    """A crop within an organ."""
    return np.asarray(RNG(1).normal(middle, noise, (24, 24, 16)))


def head() -> Scan:
    """Air, a skull, a brain."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, 40) for _ in range(3)), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    scan = np.select([radius < 0.75, radius < 0.85, radius < 0.9], [35.0, 1100.0, -50.0], -1000.0)
    return np.asarray(scan + RNG(2).normal(0, 8, scan.shape))


def overshot(scan: Scan) -> Scan:
    """As after cubic interpolation: values below the least."""
    return np.asarray(ndimage.zoom(scan, (1.3, 1.3, 1.0), order=3))


def padded(scan: Scan, value: float) -> Scan:
    """With a value outside of a circle."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in scan.shape[:2]), indexing="ij")
    return np.where((x**2 + y**2 > 1)[..., None], value, scan)


def window(scan: Scan, low: float, high: float) -> Scan:
    """0 at the window's lower end, 1 at its upper one."""
    return np.asarray((np.clip(scan, low, high) - low) / (high - low))


def z_scores(scan: Scan) -> Scan:
    """The scan with a mean of 0 and a standard deviation of 1."""
    return np.asarray((scan - scan.mean()) / scan.std())


def whole(scan: Scan) -> Int16[np.ndarray, "x y z"]:
    """As int16."""
    rounded: Int16[np.ndarray, "x y z"] = np.rint(scan).astype(np.int16)
    return rounded


CT: dict[str, Callable[[], Scan]] = {
    "chest": chest,
    "head": head,
    "padding -2000": lambda: padded(chest(), -2000),
    "padding -3024": lambda: padded(chest(), -3024),
    "padding -32768": lambda: padded(chest(), -32768),
    "metal": lambda: np.where(chest() > 650, 9000.0, chest()),
    "an enhanced organ": organ,
    "an organ at 60": lambda: organ(60, 12),
    "fat": lambda: organ(-100),
    "lung": lambda: organ(-850, 40),
    "a crop at the border of the view": lambda: padded(organ(), -3024),
    "a phantom without noise": lambda: np.where(chest() > -500, 40.0, -1000.0),
    "clipped to a window": lambda: np.clip(chest(), -160, 240),
    "brain, all else 0": lambda: np.where(abs(head() - 35) > 40, 0.0, head() + RNG(8).normal(-5, 12, (40, 40, 40))),
}

WRONG: dict[str, tuple[Callable[[], Scan], str]] = {
    "an offset of 1024": (lambda: chest() + 1024, "offset of 1024"),
    "an offset of 1000": (lambda: chest() + 1000, "offset of 1024"),
    "an offset over padding": (lambda: padded(chest() + 1024, -2000), "offset of 1024"),
    "an offset over lesser padding": (lambda: padded(chest() + 1024, -976), "offset of 1024"),
    "an offset in an organ": (lambda: organ() + 1024, "offset of 1024"),
    "an offset in lung": (lambda: organ(-700, 60) + 1024, "none of them below 0"),
    "an offset, interpolated": (lambda: overshot(chest() + 1024), "offset of 1024"),
    "grey levels": (lambda: 255 * window(chest(), -1000, 1000), "run from 0 to"),
    "grey levels of a window": (lambda: 255 * window(chest(), -160, 240), "run from 0 to 255"),
    "12 bits": (lambda: 4095 * window(chest(), -1000, 1000), "run from 0 to"),
    "an intercept applied twice": (lambda: chest() - 1024, "applied twice"),
    "twice over padding": (lambda: padded(chest() - 1024, -4048), "applied twice"),
    "ten times": (lambda: 10 * chest(), "below -4200"),
    "label map": (lambda: np.digitize(chest(), [-500, 0, 500]).astype(float), "label maps"),
    "label map with -1": (lambda: np.digitize(chest(), [-500, 0, 500]) - 1.0, "label maps"),
    "MR": (lambda: np.where(head() < -500, abs(RNG(3).normal(0, 8, (40, 40, 40))), head() / 2 + 400), "below 0"),
    "MR, interpolated": (lambda: overshot(np.where(head() < -500, 0.0, 600.0)), "background within 5 of 0"),
    "z-scores, rounded": (lambda: z_scores(chest()), "normalised images"),
}

FRACTIONS: dict[str, Callable[[], Scan]] = {
    "0 to 1": lambda: window(chest(), -1000, 1000),
    "0 to 0.4": lambda: 0.4 * window(chest(), -1000, 1000),
    "-1 to 1": lambda: 2 * window(chest(), -1000, 1000) - 1,
    "z-scores": lambda: z_scores(chest()),
    "z-scores of an organ": lambda: z_scores(organ()),
    "z-scores by a foreground": lambda: (chest() - 100) / 25,
    "SUV": lambda: abs(RNG(4).gamma(0.5, 1.5, (40, 40, 20))) - 0.1,
    "a thousandth": lambda: chest() / 1000,
}


@pytest.mark.parametrize("name", CT)
def test_ct_is_not_refused(name: str) -> None:
    assert judge(whole(CT[name]())).refusal == ""


def test_a_heap_of_fractions_is_an_organ_unless_it_begins_with_a_background() -> None:
    fractions = Fractions(0.99, 0.5)
    assert judge(whole(organ()), fractions).refusal == ""
    assert "in the lowest tenth" in judge(whole((chest() - 100) / 25), fractions).refusal


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_ct_is_refused_with_its_evidence(name: str) -> None:
    make, evidence = WRONG[name]
    scan = whole(make())
    refusal = judge(scan).refusal
    assert evidence in refusal
    assert f"run from {scan.min()} to {scan.max()}" in refusal


def write(path: Path, scan: Scan, kind: str = "float32") -> Path:
    nifti: Any = nibabel
    nifti.save(nifti.Nifti1Image(scan.astype(kind), np.eye(4)), path)
    return path


@pytest.mark.parametrize("name", FRACTIONS)
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_normalised_images_are_refused_as_they_are_read(tmp_path: Path, refused: Any, name: str, kind: str) -> None:
    path = write(tmp_path / "scan.nii.gz", FRACTIONS[name](), kind)
    with refused("scan.not_hounsfield"):
        read_volume(path)
    with refused("scan.not_hounsfield"):
        describe(path, pixels=True)
    with pytest.raises(DataError, match=r"holds fractions.* no whole numbers, and 99\.8 % of its values"):
        read_volume(path)
    taken = read_volume(path, accept_values=True)
    assert taken.warnings[0].startswith("taken as it is, though it holds fractions")


def test_rounding_is_never_silent(tmp_path: Path) -> None:
    smooth = ndimage.gaussian_filter(chest(), 1)
    volume = read_volume(write(tmp_path / "a.nii.gz", smooth))
    assert np.array_equal(volume.voxels, np.rint(smooth.astype(np.float32)))
    assert volume.warnings == (
        "99.8 % of voxels were no whole numbers and were rounded to whole Hounsfield units, by 0.5 at most",
    )
    few = np.rint(smooth)
    few[3, 4, 5] += 0.25
    assert read_volume(write(tmp_path / "b.nii.gz", few)).warnings == (
        "0.001 % of voxels were no whole numbers and were rounded to whole Hounsfield units, by 0.25 at most",
    )
    nearly = np.rint(smooth) + 0.0005
    assert read_volume(write(tmp_path / "c.nii.gz", nearly)).warnings == ()


def test_a_fractional_rescale_slope_is_told(write_series: Any) -> None:
    stored = whole(2 * chest() + 2048)
    volume = read_volume(write_series(stored, RescaleSlope="0.5", RescaleIntercept="-1024"))
    assert np.array_equal(volume.voxels, np.rint(stored / 2.0 - 1024))
    assert volume.warnings[-1] == (
        f"{100 * (stored % 2).mean():.1f} % of voxels were no whole numbers and were rounded to whole Hounsfield "
        "units, by 0.5 at most"
    )


def test_lost_intercepts_of_dicom_are_refused_and_may_be_taken(write_series: Any, refused: Any) -> None:
    series = write_series(whole(chest() + 1024), RescaleSlope="1", RescaleIntercept="0")
    with refused("scan.not_hounsfield"):
        read_volume(series)
    warnings = read_volume(series, accept_values=True).warnings
    assert warnings[-1].startswith("taken as it is, though it holds values that run from ")


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        (padded(chest(), -3024) + RNG(5).normal(0, 30, (64, 64, 24)), "outside of a scanner's view"),
        (np.where(chest() > 650, 9000.0, chest()), "as in metal"),
        (organ(), "a crop within an organ, or no Hounsfield units"),
        (organ(-850, 40), "hardly any voxel is soft tissue"),
        (np.clip(chest(), -160, 240), "clipped to a window"),
        (255 * window(chest(), -1000, 1000) - 128, "signed bytes"),
        (chest() / 10, "a background that is not air"),
        (np.where(RNG(6).random((24, 24, 16)) < 0.4, 1500.0, organ(0, 30)), "above 500 HU"),
        (overshot(255 * window(chest(), -160, 240)), "a background of 0"),
        (np.full((9, 9, 9), -5.0), "every voxel is -5 HU"),
    ],
)
def test_what_is_doubtful_is_a_warning(scan: Scan, words: str) -> None:
    verdict = judge(whole(scan))
    assert verdict.refusal == ""
    assert any(words in warning for warning in verdict.warnings), verdict.warnings


def test_a_plain_scan_has_no_warning_and_a_few_voxels_are_not_judged() -> None:
    assert judge(whole(chest())) == ("", ())
    assert judge(np.arange(24, dtype=np.int16).reshape(4, 3, 2)) == ("", ())


def test_large_scans_are_judged_by_every_few_lines() -> None:
    large = np.tile(whole(chest()), (5, 5, 2))
    assert judge(large) == ("", ())
    assert "offset of 1024" in judge(large + np.int16(1024)).refusal


REAL = (
    "abdomen/TS_example_ct.nii.gz",
    "abdomen/slicerio_CTChest4.nrrd",
    "lidc/LIDC-IDRI-0001_16sl_dicom",
    "lung_tumour/4DLung-113_p40_3mm.nii.gz",
    "lung_tumour/pyradiomics_lung1_crop.nii.gz",
    "sts_ct/STS_008_ct.nii.gz",
    "sts_ct/STS_025_ct.nii.gz",
    "dicom_hard/single_ct/WG04_CT1_J2KI.dcm",
    "dicom_hard/single_ct/pydicom_CT_small.dcm",
)


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_scans_and_crops_of_them_are_not_refused(shared_data: Path, name: str) -> None:
    voxels = read_volume(shared_data / name).voxels
    rng = RNG(7)
    for _ in range(40):
        sides = [min(side, int(rng.integers(12, 64))) for side in voxels.shape]
        starts = [int(rng.integers(0, side - part + 1)) for side, part in zip(voxels.shape, sides, strict=True)]
        crop = voxels[tuple(slice(a, a + part) for a, part in zip(starts, sides, strict=True))]
        assert judge(np.ascontiguousarray(crop)).refusal == "", (starts, sides)


@pytest.mark.data
@pytest.mark.parametrize("name", REAL[:7])
def test_real_scans_with_other_values_are_refused(shared_data: Path, name: str) -> None:
    voxels = read_volume(shared_data / name).voxels.astype(float)
    grey = 255 * window(voxels, -160, 240)
    wrong = (voxels + 1024, voxels - 1024, voxels * 10, grey, z_scores(voxels), window(voxels, -1000, 1000))
    for scan in wrong:
        assert judge(whole(np.clip(scan, -32768, 32767))).refusal
