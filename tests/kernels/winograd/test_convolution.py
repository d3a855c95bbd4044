"""Winograd's convolutions and norms are torch's, up to rounding, for any shape and both lengths of vectors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

pytest.importorskip("llvmlite")

from voxray.kernels.winograd import Convolution, can_compile, convolution, is_worth_it, machine, norm_affine
from voxray.kernels.winograd.points import ANSWER, DATA, weights_at_points

pytestmark = pytest.mark.skipif(not can_compile(), reason="the processor has no vectors that are long enough")

SIDE = st.integers(1, 13)


@pytest.fixture(params=[machine.LONG, machine.SHORT], ids=["16 lanes", "8 lanes"], scope="module")
def blocking(request: pytest.FixtureRequest) -> Iterator[machine.Blocking]:
    """The functions for AVX-512 and for AVX2; LLVM writes the long vectors as two where the processor has none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "blocking", lambda: request.param)
        convolution._convolution.cache_clear()
        convolution._moments.cache_clear()
        yield request.param
    convolution._convolution.cache_clear()
    convolution._moments.cache_clear()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def last(image: Float[Tensor, "c x y z"]) -> np.ndarray[tuple[int, int, int, int], np.dtype[np.float32]]:
    return np.ascontiguousarray(image.movedim(0, -1).numpy(), np.float32)


@pytest.mark.usefixtures("blocking")
@given(
    inputs=st.sampled_from([16, 32, 80]),
    outputs=st.sampled_from([16, 32, 48]),
    sides=st.tuples(SIDE, SIDE, st.integers(1, 40)),
    normed=st.booleans(),
    added=st.booleans(),
    sloped=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape(
    inputs: int,
    outputs: int,
    sides: tuple[int, int, int],
    normed: bool,
    added: bool,
    sloped: bool,
) -> None:
    rng = torch.Generator().manual_seed(sum(sides) + 100 * inputs + outputs)
    image, residual = (torch.randn(count, *sides, generator=rng) for count in (inputs, outputs))
    weight, bias = torch.randn(outputs, inputs, 3, 3, 3, generator=rng), torch.randn(outputs, generator=rng)
    slope, affine = torch.rand(outputs, generator=rng), torch.randn(2, inputs, generator=rng)

    seen = image.double()
    if normed:
        scale, shift = affine.double()[:, :, None, None, None]
        seen = functional.relu(seen * scale + shift)
    exact = functional.conv3d(seen[None], weight.double(), bias.double(), padding=1)[0]
    largest = float(exact.abs().max())
    if sloped:
        exact = functional.prelu(exact[None], slope.double())[0]
    if added:
        exact = exact + residual

    convolve = Convolution(weight.numpy(), bias.numpy(), slope.numpy() if sloped else None)
    answer = np.full((*sides, outputs), np.nan, np.float32)
    convolve(
        last(image),
        answer,
        affine=affine.numpy() if normed else None,
        residual=last(residual) if added else None,
    )
    assert np.abs(answer - last(exact)).max() < 3e-5 * largest


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_answer_does_not_depend_on_threads(threads: int) -> None:
    """Nor on what the threads' memory held before."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(21, 10, 30, 16)).astype(np.float32)
    weight, bias = rng.normal(size=(16, 16, 3, 3, 3)).astype(np.float32), np.zeros(16, np.float32)
    convolve, answers = Convolution(weight, bias), []
    for count in (1, threads):
        torch.set_num_threads(count)
        convolve(np.full_like(image, np.nan), np.empty_like(image))
        answers.append(np.empty_like(image))
        convolve(image, answers[-1])
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.mark.parametrize(
    ("threads", "sides", "at_once"),
    [(2, (96, 96, 96), 1), (2, (12, 12, 12), 5), (16, (24, 24, 24), 3), (2, (24, 24, 24), 3), (2, (4, 4, 3), 3)],
)
def test_tiles_at_once(
    threads: int, sides: tuple[int, int, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 9 tiles two threads take 5 and 4, and of 36 twelve threads 3; a block has its 12 rows."""
    monkeypatch.setattr(machine, "blocking", lambda: machine.LONG)
    torch.set_num_threads(threads)
    assert convolution._tiles_at_once(sides) == at_once


@pytest.mark.parametrize(
    ("threads", "sides", "worth"),
    [(2, (12, 12, 12), True), (2, (6, 6, 6), False), (9, (12, 12, 12), True), (10, (12, 12, 12), False)],
)
def test_small_maps_and_many_threads_are_not_worth_it(threads: int, sides: tuple[int, int, int], worth: bool) -> None:
    torch.set_num_threads(threads)
    assert is_worth_it(sides) is worth


def test_several_scans_at_once() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 16, 16, 16, 16)).astype(np.float32)
    convolve = Convolution(rng.normal(size=(16, 16, 3, 3, 3)).astype(np.float32), np.ones(16, np.float32))
    alone, together = np.empty_like(images), np.empty_like(images)
    for image, answer in zip(images, alone, strict=True):
        convolve(image, answer)
    threads = [threading.Thread(target=convolve, args=pair) for pair in zip(images, together, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(alone, together)


@pytest.mark.usefixtures("blocking")
@pytest.mark.parametrize(
    ("channels", "groups", "sides", "mean"),
    [(16, 16, (5, 4, 9), 0.0), (32, 8, (20, 20, 20), 100.0), (48, 1, (3, 7, 33), -5.0), (32, 4, (1, 1, 1), 3.0)],
)
def test_norms(channels: int, groups: int, sides: tuple[int, int, int], mean: float) -> None:
    rng = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(2, channels, generator=rng)
    image = mean + torch.randn(channels, *sides, generator=rng)
    image[3] = mean + 0.25  # a channel without variance
    exact = functional.group_norm(image[None].double(), groups, weight.double(), bias.double(), 1e-3)[0]
    scale, shift = norm_affine(last(image), groups, 1e-3, weight.numpy(), bias.numpy())
    assert (
        np.abs(last(image) * scale + shift - last(exact)).max() < 2e-7 * (1 + abs(mean)) * np.abs(scale).max() + 2e-6
    )


def test_the_points_give_the_sums_of_three_taps() -> None:
    """The matrices on one axis against the plain sum, and the weights on two."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(1, 1, 3, 3, 3)).astype(np.float32)
    at_points = weights_at_points(weight).reshape(6, 6, 3)
    tile = rng.normal(size=(6, 6))
    spread = np.array(DATA) @ tile @ np.array(DATA).T
    for tap in range(3):
        found = np.array(ANSWER) @ (spread * at_points[:, :, tap]) @ np.array(ANSWER).T
        plain = [[(tile[x : x + 3, y : y + 3] * weight[0, 0, :, :, tap]).sum() for y in range(4)] for x in range(4)]
        np.testing.assert_allclose(found, plain, atol=1e-5)
