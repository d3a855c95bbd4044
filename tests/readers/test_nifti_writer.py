"""What is written comes back the same, and nibabel and SimpleITK see the same world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.core.errors import ConfigError
from voxray.core.volume import Grid, Volume
from voxray.readers import read_label_map, read_volume, write_nifti


def oblique(shape: tuple[int, int, int], *, mirrored: bool = False, angle: float = 0.3) -> Grid:
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(0.2), -np.sin(0.2)], [0, np.sin(0.2), np.cos(0.2)]])
    direction = turn @ tip @ np.diag([1, 1, -1 if mirrored else 1])
    return Grid(shape, (0.7, 0.8, 2.5), (-30.0, 12.0, 400.0), tuple(direction.ravel().tolist()))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_images_come_back(tmp_path: Path, rng: np.random.Generator, name: str, mirrored: bool) -> None:
    shape = (7, 6, 35)
    volume = Volume(rng.integers(-2000, 3000, shape).astype(np.int16), oblique(shape, mirrored=mirrored))
    write_nifti(volume, tmp_path / name)
    back = read_volume(tmp_path / name)
    assert (back.voxels == volume.voxels).all()
    assert back.grid.is_close(volume.grid)
    seen: Any = SimpleITK.ReadImage(str(tmp_path / name))
    assert (volume.voxels == SimpleITK.GetArrayFromImage(seen).T).all()
    np.testing.assert_allclose(seen.GetOrigin(), volume.grid.origin_mm, atol=1e-4)
    np.testing.assert_allclose(seen.GetDirection(), volume.grid.direction, atol=1e-5)
    np.testing.assert_allclose(seen.GetSpacing(), volume.grid.spacing_mm, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_label_maps_come_back_in_any_memory_order(tmp_path: Path, dtype: type[np.generic]) -> None:
    voxels = np.asfortranarray(np.arange(7 * 6 * 35).reshape(7, 6, 35) % 251 + 250 * (dtype == np.uint16)).astype(
        dtype
    )
    write_nifti(Volume(voxels[::-1], oblique((7, 6, 35))), tmp_path / "a.nii.gz")
    back = read_label_map(tmp_path / "a.nii.gz")
    assert back.voxels.dtype == dtype
    assert (back.voxels == voxels[::-1]).all()


@settings(max_examples=30)
@given(angle=st.floats(-3.1, 3.1), mirrored=st.booleans())
def test_both_forms_hold_the_world(tmp_path_factory: pytest.TempPathFactory, angle: float, mirrored: bool) -> None:
    path = tmp_path_factory.mktemp("forms") / "a.nii"
    grid = oblique((3, 2, 2), mirrored=mirrored, angle=angle)
    write_nifti(Volume(np.zeros(grid.shape, np.uint8), grid), path)
    image: Any = nib.load(path)
    wanted = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(form, wanted, atol=1e-3)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    volume = Volume(np.ones((3, 4, 5), np.uint8), oblique((3, 4, 5)))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(volume, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    good = Volume(np.ones((3, 4, 5), np.uint8), oblique((3, 4, 5)))
    write_nifti(good, path)
    before = path.read_bytes()
    broken = Grid((3, 4, 5), (np.nan, 1.0, 1.0), (0.0, 0.0, 0.0), good.grid.direction)
    with pytest.raises(Exception, match=r".+"), np.errstate(all="ignore"):
        write_nifti(Volume(good.voxels, broken), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.nii"):
        write_nifti(Volume(np.ones((3, 4, 5), np.uint8), oblique((3, 4, 5))), tmp_path / "a.mha")
