"""Winograd's convolutions are the plain ones, up to rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from voxray.inference.runtimes.winograd import (
    LEAST_CHANNELS,
    WinogradConv3d,
    is_wide,
    quickened,
    wide_share,
    winograd_conv3d,
    winograd_kernel,
)
from voxray.recipes import read_recipe

SIDE = st.integers(1, 11)


@given(
    batch=st.integers(1, 2),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    sides=st.tuples(SIDE, SIDE, SIDE),
    last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_in_float64(batch: int, inputs: int, outputs: int, sides: tuple[int, int, int], last: bool) -> None:
    rng = torch.Generator().manual_seed(sum(sides) + 100 * inputs)
    images = torch.randn(batch, inputs, *sides, generator=rng, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, 3, 3, 3, generator=rng, dtype=torch.float64)
    bias = torch.randn(outputs, generator=rng, dtype=torch.float64)
    expected = nn.functional.conv3d(images, weight, bias, padding=1)
    seen = images.contiguous(memory_format=torch.channels_last_3d) if last else images
    torch.testing.assert_close(winograd_conv3d(seen, winograd_kernel(weight), bias), expected, rtol=0, atol=1e-11)


def test_rounding_in_float32_is_that_of_a_few_digits() -> None:
    torch.manual_seed(0)
    plain = nn.Conv3d(128, 160, 3, padding=1)
    images = torch.randn(1, 128, 6, 9, 8)
    with torch.inference_mode():
        exact = nn.functional.conv3d(images.double(), plain.weight.double(), plain.bias.double(), padding=1)  # type: ignore[union-attr]
        found = WinogradConv3d(plain)(images)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert float((found - exact).abs().max() / exact.abs().max()) < 3e-5


@pytest.mark.parametrize(
    ("change", "wide"),
    [
        ({}, True),
        ({"bias": False}, True),
        ({"out_channels": LEAST_CHANNELS - 1}, False),
        ({"kernel_size": 1, "padding": 0}, False),
        ({"stride": 2}, False),
        ({"padding": 0}, False),
        ({"dilation": 2}, False),
        ({"groups": 2}, False),
        ({"padding_mode": "replicate"}, False),
    ],
)
def test_only_plain_wide_convolutions_are_replaced(change: dict[str, object], wide: bool) -> None:
    options: dict[str, object] = {"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 1} | change
    layer = nn.Conv3d(**options)  # type: ignore[arg-type]
    assert is_wide(layer) is wide
    images = torch.randn(1, 128, 5, 5, 5)
    with torch.inference_mode():
        made = quickened(nn.Sequential(layer))
        assert isinstance(made.get_submodule("0"), WinogradConv3d) is wide
        torch.testing.assert_close(made(images), layer(images), rtol=0, atol=3e-5)


def test_the_network_itself_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv3d(128, 128, 3, padding=1), nn.ReLU())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quickened(network)
    assert isinstance(network[0], nn.Conv3d)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network[0].weight.is_contiguous()


def test_where_the_multiplications_of_the_published_networks_are() -> None:
    shares = {}
    for name in ("lung_nodule", "spleen", "whole_body"):
        recipe = read_recipe(name)
        shares[name] = wide_share(recipe.network.build(recipe, 1), recipe.network.stride_vox)
    assert shares == pytest.approx({"lung_nodule": 0.95, "spleen": 0.15, "whole_body": 0.25}, abs=0.01)


def test_a_share_by_hand() -> None:
    network = nn.Sequential(nn.Conv3d(1, 128, 1), nn.Conv3d(128, 128, 3, padding=1), nn.Conv3d(128, 2, 3, padding=1))
    parts = [128, 27 * 128 * 128, 27 * 128 * 2]
    assert wide_share(network, (1, 1, 1)) == pytest.approx(parts[1] / sum(parts))


class Asking(nn.Module):
    """A network that looks at its values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(128, 128, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What the layer makes of what is anything."""
        made: torch.Tensor = self.layer(images) if images.abs().sum().item() > 0 else images
        return made


def test_a_network_that_asks_for_its_values_has_no_share() -> None:
    assert wide_share(Asking(), (1, 1, 1)) == 0
