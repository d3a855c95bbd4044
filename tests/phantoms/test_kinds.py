"""The phantoms themselves: densities, sides, truth, and that shape alone tells a nodule from a vessel."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from voxray.core.detections import boxes_to_voxel
from voxray.core.errors import ConfigError
from voxray.core.volume import Volume
from voxray.phantoms import KINDS, Phantom, draw_phantom
from voxray.preprocess import orient

# As stored by index: LPS, LPS tilted, LAS, and slices from the front to the back.
INDICES = (0, 2, 3, 5)


@cache
def phantom(kind: str, index: int) -> Phantom:
    return draw_phantom(kind, index, seed=3)


def _boxes(drawn: Phantom) -> np.ndarray:
    """Its objects in edge voxels of the image."""
    return boxes_to_voxel(drawn.boxes_mm, drawn.image.grid)


def _structure(kind: str, index: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """HU of a structure's voxels, and their LPS mm."""
    drawn = phantom(kind, index)
    mask = drawn.labels == KINDS[kind].structures.index(name) + 1
    return drawn.image.voxels[mask], drawn.image.grid.to_world(np.argwhere(mask) + 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_words_give_the_same_phantom_and_other_words_another(kind: str) -> None:
    first, again = phantom(kind, 1), draw_phantom(kind, 1, seed=3)
    np.testing.assert_array_equal(first.image.voxels, again.image.voxels)
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.boxes_mm, again.boxes_mm)
    assert first.image.grid == again.image.grid
    other = draw_phantom(kind, 1, seed=4)
    assert other.image.grid.shape != first.image.grid.shape or np.any(other.image.voxels != first.image.voxels)


@pytest.mark.parametrize("kind", ["thorax", "abdomen"])
def test_grids_differ_in_spacing_order_and_tilt(kind: str) -> None:
    grids = [phantom(kind, index).image.grid for index in INDICES]
    assert [grid.orientation for grid in grids] == ["LPS", "LPS", "LAS", "RSP"]
    assert len({grid.spacing_mm for grid in grids}) == len(grids)
    oblique = [not np.allclose(np.abs(grid.rotation).max(axis=0), 1, atol=1e-6) for grid in grids]
    assert oblique.count(True) == 1
    assert all(min(grid.spacing_mm) > 2.0 and max(grid.spacing_mm) < 3.2 for grid in grids)


@pytest.mark.parametrize("index", INDICES)
def test_the_chest_has_its_densities_and_sides(index: int) -> None:
    values = {name: _structure("thorax", index, name) for name in KINDS["thorax"].structures}
    medians = {name: float(np.median(hu)) for name, (hu, _) in values.items()}
    assert -890 < medians["lung_right"] < -800
    assert -890 < medians["lung_left"] < -800
    assert medians["trachea"] < -880
    assert 25 < medians["heart"] < 60
    assert 45 < medians["liver"] < 75
    assert 180 < medians["spine"] < 450
    assert 200 < medians["ribs"] < 550
    middle = {name: points.mean(axis=0) for name, (_, points) in values.items()}
    assert middle["lung_left"][0] > 40 > -40 > middle["lung_right"][0]
    assert middle["heart"][0] > 5
    assert middle["liver"][0] < -20
    assert middle["liver"][2] < middle["heart"][2] < middle["trachea"][2]
    assert middle["spine"][1] > middle["heart"][1] + 40


@pytest.mark.parametrize("index", INDICES)
def test_the_abdomen_has_its_densities_and_sides(index: int) -> None:
    values = {name: _structure("abdomen", index, name) for name in KINDS["abdomen"].structures}
    medians = {name: float(np.median(hu)) for name, (hu, _) in values.items()}
    assert 90 < medians["liver"] < 125
    assert 98 < medians["spleen"] < 130
    assert 155 < medians["kidney_left"] < 190
    assert abs(medians["kidney_left"] - medians["kidney_right"]) < 6
    middle = {name: points.mean(axis=0) for name, (_, points) in values.items()}
    assert middle["spleen"][0] > middle["kidney_left"][0] > 40
    assert middle["liver"][0] < -20
    assert middle["kidney_right"][0] < -40
    assert middle["spleen"][2] > middle["kidney_left"][2]
    volume_ml = {
        name: len(hu) * np.prod(phantom("abdomen", index).image.grid.spacing_mm) / 1000
        for name, (hu, _) in values.items()
    }
    assert 800 < volume_ml["liver"] < 2200
    assert 90 < volume_ml["spleen"] < 400
    assert 90 < volume_ml["kidney_left"] < 260


def test_liver_and_spleen_overlap_in_density() -> None:
    liver, spleen = (
        np.concatenate([_structure("abdomen", i, name)[0] for i in INDICES]) for name in ("liver", "spleen")
    )
    cut = np.arange(40, 180)
    best = max(np.mean(liver > c) + np.mean(spleen <= c) for c in cut) / 2
    assert best < 0.8


def test_boxes_hold_their_nodules_and_little_else() -> None:
    seen = 0
    for index in INDICES:
        drawn = phantom("thorax", index)
        for box in _boxes(drawn):
            low, high = np.floor(box[:3]).astype(int), np.ceil(box[3:]).astype(int)
            assert np.all(low >= 0)
            assert np.all(high <= drawn.image.grid.shape)
            crop = drawn.image.voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            middle = tuple(np.floor((box[:3] + box[3:]) / 2).astype(int))
            assert drawn.image.voxels[middle] > -150
            size_mm = (box[3:] - box[:3]) * drawn.image.grid.spacing_mm
            assert 5 < size_mm.min() < 32
            # A ball fills half of its box, and the rim of its box by whole voxels is air or wall.
            assert 0.15 < np.mean(crop > -400) < 0.98
            seen += 1
    assert seen >= 5


def test_some_chests_have_no_nodule_and_some_have_several() -> None:
    counts = [len(phantom("thorax", index).boxes_mm) for index in INDICES]
    assert 0 in counts
    assert max(counts) >= 3


def test_density_does_not_tell_a_nodule_from_a_thick_vessel() -> None:
    nodules, vessels = [], []
    for index in INDICES:
        drawn = phantom("thorax", index)
        dense = np.isin(drawn.labels, (1, 2)) & (drawn.image.voxels > -100)
        for box in _boxes(drawn):
            centre = tuple(int(v) for v in (box[:3] + box[3:]) / 2)
            nodules.append(float(drawn.image.voxels[centre]))
            low, high = np.floor(box[:3]).astype(int) - 2, np.ceil(box[3:]).astype(int) + 2
            dense[tuple(slice(max(0, a), b) for a, b in zip(low, high, strict=True))] = False
        vessels += drawn.image.voxels[dense].astype(float).tolist()
    low, high = np.percentile(vessels, [2, 98])
    assert low < np.median(nodules) < high


def test_noise_is_that_of_a_scan_and_not_static() -> None:
    """Neighbours are correlated, sums over many voxels nearly noiseless: as the ramp filter leaves them."""
    image = orient(phantom("abdomen", 0).image, "RAS")
    labels = orient(Volume(phantom("abdomen", 0).labels, phantom("abdomen", 0).image.grid), "RAS").voxels
    inside = np.argwhere(labels == 1)
    x, y, z = np.median(inside, axis=0).astype(int)
    patch = image.voxels[x - 6 : x + 6, y - 6 : y + 6, z - 6 : z + 6].astype(np.float64)
    patch -= patch.mean()
    assert 6 < patch.std() < 30
    assert np.corrcoef(patch[1:].ravel(), patch[:-1].ravel())[0, 1] > 0.15


def test_cubes_are_those_of_nndetection() -> None:
    for index in (0, 1):
        drawn = phantom("cubes", index)
        (box,) = _boxes(drawn)
        sides = box[3:] - box[:3]
        assert np.all(sides == sides[0])
        assert 16 <= sides[0] < 32
        assert drawn.classes.tolist() == [index]
        cube = tuple(slice(int(a), int(b)) for a, b in zip(box[:3], box[3:], strict=True))
        labels, values = drawn.labels[cube], (drawn.image.voxels[cube] + 1000) / 1000
        inner = labels[:, 4:-4, 4:-4]
        assert np.all(inner == (1 if index == 0 else 0))
        assert np.all(labels[:, :4] == index + 1)
        # U(0, 1) + 0.4, cut at 1: the mean is 0.4 * 0.6 + 0.6^2 / 2 + 0.4 = 0.82; the noise's is 0.5.
        assert values[labels > 0].mean() == pytest.approx(0.82, abs=0.01)
        assert ((drawn.image.voxels + 1000) / 1000)[drawn.labels == 0].mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("kind", "size", "word"), [("torax", "small", "thorax"), ("thorax", "tiny", "large")])
def test_unknown_words_are_refused(kind: str, size: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        draw_phantom(kind, 0, size=size)
