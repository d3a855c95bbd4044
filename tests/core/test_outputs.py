"""A segmentation network's head, applied to windows, and to what windows were blended to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from voxray.core.outputs import Head, channels_last


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values with the channels first or last in memory."""
    return values.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "last" else values


def head_and_layer() -> tuple[Head, nn.Conv3d]:
    torch.manual_seed(0)
    layer = nn.Conv3d(5, 9, 1)
    assert layer.bias is not None
    return Head(layer.weight.detach().flatten(1), layer.bias.detach()), layer


@pytest.mark.parametrize("layout", ["first", "last"])
def test_a_head_is_a_convolution_of_single_voxels(layout: str) -> None:
    head, layer = head_and_layer()
    features = laid_out(torch.randn(2, 5, 4, 3, 6), layout)
    assert channels_last(features[0]) is (layout == "last")
    with torch.inference_mode():
        torch.testing.assert_close(head.logits(features), layer(features))


@pytest.mark.parametrize("layout", ["first", "last"])
def test_sums_of_features_become_sums_of_logits(layout: str) -> None:
    head, layer = head_and_layer()
    windows, weights = torch.randn(3, 5, 4, 3, 6), torch.rand(3, 1, 4, 3, 6)
    with torch.inference_mode():
        expected = (weights * layer(windows)).sum(0)
    sums = torch.cat([weights * windows, weights], dim=1).sum(0)
    found = head.sums(laid_out(sums[None], layout)[0])
    torch.testing.assert_close(found, expected)
    assert channels_last(found) is (layout == "last"), "a large block is not turned over"
