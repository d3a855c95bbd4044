from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxray.metrics.bootstrap import band, differences, draw_weights, in_blocks, intervals


@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_each_replicate_draws_as_many_scans_as_there_are(num_scans: int, seed: int) -> None:
    weights = draw_weights(num_scans, rng=np.random.default_rng(seed), num=30)
    assert weights.shape == (num_scans, 30)
    assert (weights.sum(axis=0) == num_scans).all()
    again = draw_weights(num_scans, rng=np.random.default_rng(seed), num=30)
    np.testing.assert_array_equal(weights, again)


def test_scans_of_one_patient_are_drawn_together(rng: np.random.Generator) -> None:
    units = np.array([0, 1, 0, 2, 1])
    weights = draw_weights(5, rng=rng, num=200, units=units)
    np.testing.assert_array_equal(weights[0], weights[2])
    np.testing.assert_array_equal(weights[1], weights[4])
    assert (weights[[0, 1, 3]].sum(axis=0) == 3).all()


def test_the_interval_of_a_mean_is_that_of_theory(rng: np.random.Generator) -> None:
    """Of a mean the bootstrap's interval is ± 1.96 standard errors, to the noise of 20,000 replicates."""
    values = rng.normal(3.0, 2.0, 400)
    means = values @ draw_weights(400, rng=rng, num=20_000) / 400
    low, high = intervals({"mean": means})["mean"]
    error = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - error, abs=0.03 * error * 2)
    assert high == pytest.approx(values.mean() + error, abs=0.03 * error * 2)


def test_the_ends_are_the_official_order_statistics() -> None:
    """LUNA16's script: sorted[floor(0.025 n)] and sorted[floor(0.975 n)]; nan does not count."""
    values = np.arange(1000.0)[::-1].copy()
    assert band(values[:, None])[:, 0].tolist() == [25.0, 975.0]
    values[:500] = np.nan
    assert band(values[:, None])[:, 0].tolist() == [12.0, 487.0]
    assert np.isnan(band(np.full((3, 1), np.nan))).all()
    assert intervals({"none": np.full(3, np.nan), "one": np.array([np.nan, 2.0])}) == {"one": (2.0, 2.0)}


def test_a_paired_difference_is_narrower_than_two_intervals(rng: np.random.Generator) -> None:
    first = rng.normal(0.0, 1.0, 100)
    second = first + 0.1 + rng.normal(0.0, 0.05, 100)
    weights = draw_weights(100, rng=rng, num=2000) / 100
    pairs = [({"m": np.array([run.mean()])}, {"m": run @ weights}) for run in (first, second)]
    found = differences(pairs[0], pairs[1])["m"]
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert 0 < found.low < found.value < found.high
    low, high = intervals(pairs[0][1])["m"]
    assert found.high - found.low < 0.2 * (high - low)
    assert found.share_above == 1.0
    same = differences(pairs[0], pairs[0])["m"]
    assert (same.value, same.low, same.high, same.share_above) == (0.0, 0.0, 0.0, 0.5)


def test_blocks_of_replicates_change_nothing(rng: np.random.Generator) -> None:
    weights = draw_weights(7, rng=rng, num=50)
    whole = in_blocks(lambda block: {"sum": np.arange(7) @ block}, weights, columns=1000)
    parts = in_blocks(lambda block: {"sum": np.arange(7) @ block}, weights, columns=3)
    np.testing.assert_array_equal(whole["sum"], parts["sum"])
