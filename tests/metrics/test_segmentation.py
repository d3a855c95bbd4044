from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from voxray.metrics.bootstrap import draw_weights, ones
from voxray.metrics.segmentation import segmentation_values, structure_table, table_of_unread
from voxray.metrics.surface import surface

SPACING = (1.0, 2.0, 0.5)
NAMES = ("a", "b", "c")


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_equals_each_class_alone_on_the_whole_grid(seed: int) -> None:
    """Cropping to a class changes nothing: masks, volumes and distances as their definitions give them."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, 14, 12, 10)), (0, 1.5, 1.5, 1.5))
    truth, found = (
        np.digitize(values, [0.0, 0.1, 0.2]).astype(np.uint8) for values in (noise[0], noise.mean(axis=0))
    )
    table = structure_table(found, truth, SPACING, num_classes=3)
    for label in (1, 2, 3):
        mine, real = found == label, truth == label
        dice, nsd, _, hd95, found_ml, truth_ml = table[label - 1]
        assert (found_ml, truth_ml) == pytest.approx((mine.sum() / 1000, real.sum() / 1000))
        if not real.any():
            assert np.isnan([dice, nsd, hd95]).all()
        elif not mine.any():
            assert (dice, nsd) == (0.0, 0.0)
        else:
            assert dice == pytest.approx(2 * (mine & real).sum() / (mine.sum() + real.sum()))
            away = [
                ndimage.distance_transform_edt(~surface(a), sampling=SPACING)[surface(b)]
                for a, b in ((real, mine), (mine, real))
            ]
            assert hd95 == pytest.approx(max(np.percentile(part, 95) for part in away))
            assert nsd == pytest.approx(np.mean(np.concatenate(away) <= 1.0))


def test_empty_cases() -> None:
    """Class a is missed, b is found where there is none, c is in neither."""
    truth, found = np.zeros((2, 10, 10, 10), np.uint8)
    truth[:2], found[5:6] = 1, 2
    table = structure_table(found, truth, SPACING, num_classes=3)
    diagonal = math.hypot(10, 20, 5)
    np.testing.assert_allclose(table[0], [0, 0, 0, diagonal, 0.0, 0.2])
    np.testing.assert_allclose(table[1], [np.nan] * 4 + [0.1, 0.0])
    np.testing.assert_allclose(table[2], [np.nan] * 4 + [0.0, 0.0])
    values = {name: float(v[0]) for name, v in segmentation_values(table[None], ones(1), NAMES).items()}
    assert values["dice"] == values["dice/a"] == values["NSD@1mm"] == 0.0
    assert values["HD95_mm"] == pytest.approx(diagonal)
    assert (values["volume_error_ml"], values["volume_bias_ml"]) == pytest.approx((0.2, -0.2))
    assert values["volume_error_percent"] == 100.0
    assert not any(name.endswith(("/b", "/c")) for name in values)


def test_what_is_found_where_there_is_none_counts_as_false_volume() -> None:
    truth, found = np.zeros((2, 2, 10, 10, 10), np.uint8)
    truth[0, :5] = found[0, :5] = found[1, :3] = 1
    tables = np.stack([structure_table(found[i], truth[i], SPACING, num_classes=1) for i in (0, 1)])
    values = segmentation_values(tables, ones(2), ["a"])
    assert values["dice"][0] == 1.0
    assert values["false_ml/a"][0] == pytest.approx(0.3)


def test_a_case_that_cannot_be_read_never_makes_the_score_better() -> None:
    truth = np.zeros((10, 10, 10), np.uint8)
    truth[2:6, 2:6, 2:6] = 1
    read = structure_table(np.roll(truth, 1, axis=0), truth, SPACING, num_classes=1)
    alone = segmentation_values(read[None], ones(1), ["a"])
    both = segmentation_values(np.stack([read, table_of_unread(1)]), ones(2), ["a"])
    assert both["dice"][0] == pytest.approx(alone["dice"][0] / 2)
    assert both["NSD@1mm"][0] == pytest.approx(alone["NSD@1mm"][0] / 2)
    assert both["HD95_mm"][0] >= alone["HD95_mm"][0]
    assert both["volume_error_percent"][0] == pytest.approx((alone["volume_error_percent"][0] + 100) / 2)


def test_a_replicate_is_the_mean_over_drawn_cases(rng: np.random.Generator) -> None:
    tables = rng.random((6, 3, 6))
    tables[rng.random((6, 3)) < 0.3, :4] = np.nan
    tables[..., 5] = np.where(np.isfinite(tables[..., 0]), tables[..., 5] + 0.1, 0.0)
    weights = draw_weights(6, rng=rng, num=8)
    values = segmentation_values(tables, weights, NAMES)
    for column, drawn in enumerate(weights.T.astype(int)):
        rows = np.repeat(tables, drawn, axis=0)
        expected = segmentation_values(rows, ones(len(rows)), NAMES)
        for name, value in expected.items():
            assert values[name][column] == pytest.approx(value[0], abs=1e-12, nan_ok=True), name
        with np.errstate(invalid="ignore"):
            dice = [np.mean(part[np.isfinite(part)]) for part in rows[..., 0].T if np.isfinite(part).any()]
        assert values["dice"][column] == pytest.approx(np.mean(dice))


@pytest.mark.data
def test_real_abdomen_against_a_shifted_copy(shared_data: Path) -> None:
    """A whole abdomen moved by one voxel of 3 mm: no surface is further away than that, none of 61 classes fails."""
    path = shared_data / "abdomen" / "TS_example_ct_labels117_fast.nii.gz"
    truth = np.asarray(nibabel.load(path).dataobj).astype(np.uint8)  # type: ignore[attr-defined]
    table = structure_table(np.roll(truth, 1, axis=0), truth, (3.0, 3.0, 3.0), num_classes=117)
    there = np.isfinite(table[:, 0])
    assert there.sum() == 61
    spleen = table[0]
    assert 0.9 < spleen[0] < 1.0
    assert (spleen[2], spleen[3]) == (1.0, 3.0)
    assert spleen[5] == pytest.approx(9668 * 27 / 1000)
