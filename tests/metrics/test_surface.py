"""Surfaces and their distances against a reading of the definition, scipy's distance transform, and MONAI."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from voxray.core.volume import Vector
from voxray.metrics.surface import surface, surface_distances

Mask = NDArray[np.bool_]


def _masks(seed: int) -> tuple[Mask, Mask, Vector]:
    """Two overlapping blobs, sometimes at the border, on an anisotropic grid."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, 13, 11, 9)), (0, 2, 2, 2))
    shape = noise[0] + 0.3 * noise[1] > 0.02, noise[0] > 0.03
    found, truth = (mask if mask.any() else ~mask for mask in shape)
    x, y, z = rng.uniform(0.5, 3.0, 3).tolist()
    return found, truth, (x, y, z)


def _slow_surface(mask: Mask) -> list[tuple[int, ...]]:
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    inside = {tuple(point) for point in np.argwhere(mask).tolist()}
    return [p for p in sorted(inside) if any(tuple(np.add(p, s).tolist()) not in inside for s in steps)]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_equals_all_pairs(seed: int) -> None:
    found, truth, spacing = _masks(seed)
    edges = [_slow_surface(mask) for mask in (found, truth)]
    for mask, points in zip((found, truth), edges, strict=True):
        assert [tuple(point) for point in np.argwhere(surface(mask)).tolist()] == points
    scaled = [np.array(points) * spacing for points in edges]
    pairs = np.linalg.norm(scaled[0][:, None] - scaled[1][None], axis=2)
    ours = surface_distances(found, truth, spacing)
    np.testing.assert_allclose(ours.from_found, pairs.min(axis=1), atol=1e-12)
    np.testing.assert_allclose(ours.from_truth, pairs.min(axis=0), atol=1e-12)
    within = (pairs.min(axis=1) <= 1.5).sum() + (pairs.min(axis=0) <= 1.5).sum()
    assert ours.nsd(1.5) == within / sum(pairs.shape)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_equals_the_distance_transform(seed: int) -> None:
    found, truth, spacing = _masks(seed)
    ours = surface_distances(found, truth, spacing)
    to_truth = ndimage.distance_transform_edt(~surface(truth), sampling=spacing)
    np.testing.assert_allclose(np.sort(ours.from_found), np.sort(to_truth[surface(found)]), atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_equals_monai() -> None:
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    for seed in range(8):
        found, truth, spacing = _masks(seed)
        ours = surface_distances(found, truth, spacing)
        pair = [torch.from_numpy(mask)[None, None].float() for mask in (found, truth)]
        options = {"include_background": True, "spacing": spacing}
        hd95 = metrics.compute_hausdorff_distance(*pair, percentile=95, **options)
        nsd = metrics.compute_surface_dice(*pair, class_thresholds=[1.0], **options)
        assert ours.hd95_mm() == pytest.approx(float(hd95), rel=1e-5)
        assert ours.nsd(1.0) == pytest.approx(float(nsd), rel=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_what_distances_must_obey(seed: int) -> None:
    found, truth, spacing = _masks(seed)
    ours, turned = surface_distances(found, truth, spacing), surface_distances(truth, found, spacing)
    assert ours.hd95_mm() == turned.hd95_mm()
    assert ours.nsd(1.0) == turned.nsd(1.0)
    assert 0 <= ours.nsd(0.0) <= ours.nsd(1.0) <= ours.nsd(100.0) == 1.0
    same = surface_distances(truth, truth, spacing)
    assert (same.hd95_mm(), same.nsd(0.0)) == (0.0, 1.0)
    x, y, z = (2.0 * side for side in spacing)
    assert surface_distances(found, truth, (x, y, z)).hd95_mm() == pytest.approx(2 * ours.hd95_mm())


def test_a_shift_by_hand() -> None:
    """A cube that lies two voxels of 1.5 mm too far: 3 mm on the two faces across the shift, 0 beside."""
    truth = np.zeros((12, 8, 8), bool)
    truth[2:7, 2:6, 2:6] = True
    ours = surface_distances(np.roll(truth, 2, axis=0), truth, (1.5, 1.0, 1.0))
    assert ours.from_found.max() == 3.0
    assert ours.nsd(3.0) == 1.0
    assert ours.hd95_mm() == 3.0


def test_a_whole_grid_has_its_border_for_a_surface() -> None:
    assert np.count_nonzero(~surface(np.ones((5, 5, 5), bool))) == 27
    corner = list(itertools.product((0, 1), repeat=3))
    assert np.count_nonzero(surface(np.ones((2, 2, 2), bool))) == len(corner)
