"""Augmentation: a bright ball and its box stay together, whatever is drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from voxray.augment import Draws, apply, draw, rotation_matrix, smooth
from voxray.core.batch import IGNORED, PADDING, Batch
from voxray.core.recipe import AugmentConfig
from voxray.core.volume import Vector

GEOMETRY = {"flip_p": 0.5, "rot90_p": 0.75, "rotate_p": 0.7, "zoom_p": 0.7, "rotate_deg": 45.0}
EVERYTHING = GEOMETRY | dict.fromkeys(("noise_p", "blur_p", "scale_p", "shift_p", "gamma_p"), 0.5)
RAMP_VOX = 4.0


def _distance(sides: tuple[int, ...], centre: Any, half: Any) -> Tensor:
    """How far each voxel is outside of an ellipsoid, in about voxels."""
    axes = torch.meshgrid(*(torch.arange(side) + 0.5 for side in sides), indexing="ij")
    scaled = torch.stack([(a - float(c)) / float(h) for a, c, h in zip(axes, centre, half, strict=True)])
    return (scaled.square().sum(0).sqrt() - 1) * float(min(half))


def _ball_batch(sides: tuple[int, ...], centre: Any, half: Any, *, size: int = 1) -> Batch:
    distance = _distance(sides, centre, half)
    low, high = np.subtract(centre, half), np.add(centre, half)
    return Batch(
        images=(0.5 - distance / RAMP_VOX).clamp(0, 1).expand(size, 1, *sides).contiguous(),
        boxes=torch.tensor([[*low, *high]], dtype=torch.float32).expand(size, 1, 6).contiguous(),
        classes=torch.zeros(size, 1, dtype=torch.int64),
        labels=(distance < 0).to(torch.uint8).expand(size, *sides).contiguous(),
    )


def _extent(image: Tensor) -> list[float]:
    """The box around what is brighter than half, its edges interpolated between voxel centres."""
    low, high = [], []
    for axis in range(3):
        profile = image.amax(dim=[a for a in range(3) if a != axis]).tolist()
        bright = [i for i, value in enumerate(profile) if value > 0.5]
        first, last = bright[0], bright[-1]
        low.append(first + 0.5 - (profile[first] - 0.5) / (profile[first] - profile[first - 1]))
        high.append(last + 0.5 + (profile[last] - 0.5) / (profile[last] - profile[last + 1]))
    return low + high


def _mask_box(labels: Tensor) -> list[float]:
    found = labels.nonzero()
    return [*found.amin(0).tolist(), *(found.amax(0) + 1).tolist()]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sides=st.sampled_from([(32, 32, 32), (32, 32, 24), (28, 36, 32)]),
    spacing_mm=st.sampled_from([(1.0, 1.0, 1.0), (0.7, 0.7, 1.25), (1.0, 1.5, 1.2)]),
    offset=st.tuples(*[st.floats(-2, 2)] * 3),
)
def test_the_box_of_a_ball_follows_every_draw(
    seed: int, sides: tuple[int, int, int], spacing_mm: Vector, offset: Vector
) -> None:
    centre = np.array(sides) / 2 + offset
    half = 4.5 / np.array(spacing_mm)
    batch = _ball_batch(sides, centre, half)
    draws = draw(np.random.default_rng(seed), AugmentConfig.model_validate(GEOMETRY), 1)
    found = apply(batch, draws, spacing_mm=spacing_mm)
    assert found.classes.tolist() == [[0]]
    box = found.boxes[0, 0].tolist()
    assert found.labels is not None
    assert _extent(found.images[0, 0]) == pytest.approx(box, abs=0.5)
    assert _mask_box(found.labels[0]) == pytest.approx(box, abs=1.5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_ball_of_spacing_one_is_exact_under_any_rotation(seed: int) -> None:
    batch = _ball_batch((32, 32, 32), (17.0, 15.0, 16.0), (5.0, 5.0, 5.0))
    config = AugmentConfig(rotate_p=1.0, rotate_deg=180.0)
    found = apply(batch, draw(np.random.default_rng(seed), config, 1))
    assert (found.boxes[0, 0, 3:] - found.boxes[0, 0, :3]).tolist() == pytest.approx([10.0] * 3, abs=1e-4)
    assert _extent(found.images[0, 0]) == pytest.approx(found.boxes[0, 0].tolist(), abs=0.25)


def test_nothing_drawn_changes_nothing() -> None:
    batch = _ball_batch((16, 16, 16), (8, 8, 8), (3, 3, 3), size=3)
    found = apply(batch, draw(np.random.default_rng(0), AugmentConfig(), 3))
    assert all(a is b for a, b in zip(found, batch, strict=True))


def test_the_same_draws_give_the_same_batch_and_the_input_stays() -> None:
    batch = _ball_batch((16, 16, 16), (8, 8, 8), (3, 3, 3), size=4)
    before = [None if part is None else part.clone() for part in batch]
    config = AugmentConfig.model_validate(EVERYTHING)
    first, second = (apply(batch, draw(np.random.default_rng(7), config, 4)) for _ in range(2))
    for one, two, old, now in zip(first, second, before, batch, strict=True):
        assert one is not None
        assert two is not None
        assert old is not None
        assert now is not None
        assert torch.equal(one, two)
        assert torch.equal(old, now)
    assert not torch.equal(first.images, batch.images)


def test_patches_do_not_see_their_neighbours() -> None:
    config = AugmentConfig.model_validate(EVERYTHING)
    batch = _ball_batch((16, 16, 12), (7, 8, 6), (3, 3, 3), size=6)
    batch = batch._replace(images=batch.images * torch.arange(1, 7).reshape(-1, 1, 1, 1, 1))
    draws = draw(np.random.default_rng(3), config, 6)
    together = apply(batch, draws)
    for i in range(6):
        alone = apply(
            Batch(*(None if part is None else part[i : i + 1] for part in batch)),  # type: ignore[arg-type]
            Draws(*(part[i : i + 1] for part in draws)),
        )
        assert torch.allclose(alone.images[0], together.images[i], atol=1e-5)
        assert torch.allclose(alone.boxes[0], together.boxes[i], atol=1e-5)


def test_each_change_is_drawn_as_often_as_asked() -> None:
    config = AugmentConfig.model_validate(EVERYTHING | {"flip_axes": (0, 2), "rot90_p": 0.75, "flip_p": 0.25})
    draws = draw(np.random.default_rng(0), config, 20000)
    assert draws.flips.mean(axis=0) == pytest.approx([0.25, 0.0, 0.25], abs=0.02)
    assert np.bincount(draws.quarter_turns, minlength=4) / 20000 == pytest.approx([0.25] * 4, abs=0.02)
    assert (draws.zoom != 1).mean() == pytest.approx(0.7, abs=0.02)
    assert draws.angles_rad.any(axis=1).mean() == pytest.approx(0.7, abs=0.02)
    assert abs(draws.angles_rad).max() == pytest.approx(math.radians(45), rel=0.01)
    for values, low, high in (
        (draws.zoom, 0.7, 1.4),
        (draws.gamma, 0.7, 1.5),
        (draws.scale, 0.75, 1.25),
        (draws.shift, -0.1, 0.1),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    assert draws.noise_sd.max() <= 0.1
    assert len(np.unique(draws.noise_seed)) == 20000


def _draws(size: int = 1, **fields: Any) -> Draws:
    nothing = draw(np.random.default_rng(0), AugmentConfig(), size)
    return nothing._replace(**{name: np.asarray(value) for name, value in fields.items()})


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_those_of_numpy(turns: int) -> None:
    image = torch.arange(6 * 6 * 3, dtype=torch.float32).reshape(1, 1, 6, 6, 3)
    boxes, classes = torch.zeros(1, 0, 6), torch.zeros(1, 0, dtype=torch.int64)
    found = apply(Batch(image, boxes, classes, None), _draws(quarter_turns=[turns]))
    assert np.array_equal(found.images[0, 0].numpy(), np.rot90(image[0, 0].numpy(), turns, axes=(0, 1)))


def test_a_rotation_by_a_right_angle_is_a_quarter_turn() -> None:
    batch = _ball_batch((16, 16, 16), (5.0, 7.0, 9.0), (3, 3, 3))
    turned = apply(batch, _draws(quarter_turns=[1]))
    rotated = apply(batch, _draws(angles_rad=[[0.0, 0.0, math.pi / 2]]))
    assert torch.allclose(rotated.images, turned.images, atol=1e-4)
    assert torch.allclose(rotated.boxes, turned.boxes, atol=1e-4)


def test_patches_that_are_not_square_turn_by_half() -> None:
    batch = _ball_batch((12, 16, 10), (4.0, 7.0, 5.0), (2, 2, 2))
    found = apply(batch, _draws(quarter_turns=[1]))
    assert torch.equal(found.images, batch.images.flip([2, 3]))
    assert found.boxes[0, 0].tolist() == pytest.approx([6, 7, 3, 10, 11, 7])


def test_flips_mirror_edge_coordinates() -> None:
    batch = _ball_batch((12, 16, 10), (4.0, 7.0, 5.0), (2, 3, 2))
    found = apply(batch, _draws(flips=[[True, False, True]]))
    assert torch.equal(found.images, batch.images.flip([2, 4]))
    assert found.boxes[0, 0].tolist() == pytest.approx([12 - 6, 4, 10 - 7, 12 - 2, 10, 10 - 3])


@pytest.mark.parametrize(("x", "expected"), [(7.0, 0), (9.5, 0), (10.8, 0), (12.5, IGNORED), (15.0, PADDING)])
def test_objects_that_leave_the_patch_are_clipped_then_ignored_then_gone(x: float, expected: int) -> None:
    # Zoom 2 about 8 takes centre x to 8 + 2 (x - 8); the ball's half side becomes 4 of 16 voxels.
    batch = _ball_batch((16, 16, 16), (x, 8.0, 8.0), (2, 2, 2))
    found = apply(batch, _draws(zoom=[2.0]))
    assert found.classes.tolist() == [[expected]]
    assert float(found.boxes.min()) >= 0
    assert float(found.boxes.max()) <= 16
    if expected == PADDING:
        assert not found.boxes.any()


def test_ignored_regions_and_padding_stay_what_they_are() -> None:
    batch = _ball_batch((16, 16, 16), (8, 8, 8), (3, 3, 3))
    batch = batch._replace(boxes=batch.boxes.expand(1, 2, 6).contiguous(), classes=torch.tensor([[IGNORED, PADDING]]))
    found = apply(batch, _draws(zoom=[1.2], angles_rad=[[0.1, 0.2, 0.3]], flips=[[True, True, True]]))
    assert found.classes.tolist() == [[IGNORED, PADDING]]


def test_what_comes_from_outside_is_as_dark_as_the_patch_gets() -> None:
    batch = _ball_batch((16, 16, 16), (8, 8, 8), (3, 3, 3))
    batch = batch._replace(images=batch.images * 2 - 1)
    found = apply(batch, _draws(zoom=[0.5]))
    assert found.images[0, 0, 0, 0, 0] == -1
    assert found.labels is not None
    assert found.labels[0, 0, 0, 0] == 0


def test_intensity_changes_are_the_published_formulas() -> None:
    image = torch.linspace(0, 1, 8 * 8 * 8).reshape(1, 1, 8, 8, 8)
    batch = Batch(image, torch.zeros(1, 0, 6), torch.zeros(1, 0, dtype=torch.int64), None)
    assert torch.allclose(apply(batch, _draws(scale=[1.2], shift=[-0.1])).images, image * 1.2 - 0.1)
    assert torch.allclose(apply(batch, _draws(gamma=[1.5])).images, image**1.5, atol=1e-6)
    noise = apply(batch, _draws(noise_sd=[0.1], noise_seed=[5])).images - image
    assert float(noise.std()) == pytest.approx(0.1, rel=0.15)


def test_smoothing_agrees_with_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    image = rng.random((12, 10, 14)).astype(np.float32)
    sigma = np.array([[0.9, 0.6, 1.0]])
    found = smooth(torch.as_tensor(image)[None, None], sigma)[0, 0].numpy()
    # Densities integrated over voxels widen a kernel by the variance of a voxel, 1/12.
    expected = gaussian_filter(image, np.sqrt(sigma[0] ** 2 + 1 / 12), mode="nearest", truncate=6)
    assert np.abs(found - expected).max() < 0.01


def test_a_rotation_matrix_keeps_lengths_and_hands() -> None:
    matrix = rotation_matrix(np.array([0.3, -0.5, 1.1]))
    assert np.allclose(matrix @ matrix.T, np.eye(3))
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    assert rotation_matrix(np.array([0, 0, math.pi / 2])) @ [1, 0, 0] == pytest.approx([0, 1, 0])
