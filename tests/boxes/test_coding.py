"""Deltas: there and back, the bound, and agreement with MONAI."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.apps.detection.utils.box_coder import BoxCoder
from torch import Tensor

from voxray.boxes.coding import MAX_LOG_RATIO, decode, encode


def random_boxes(count: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand((count, 3), generator=rng) * 500 - 20
    return torch.cat([low, low + 1 + torch.rand((count, 3), generator=rng) * 50], dim=1)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 30), st.integers(0, 10_000))
def test_decode_of_encode_is_the_box(count: int, seed: int) -> None:
    boxes, anchors = random_boxes(count, seed), random_boxes(count, seed + 1)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, atol=2e-3, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 30), st.integers(0, 10_000))
def test_encode_of_decode_is_the_delta(count: int, seed: int) -> None:
    anchors = random_boxes(count, seed)
    deltas = torch.rand((count, 6), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    torch.testing.assert_close(encode(decode(deltas, anchors), anchors), deltas, atol=1e-3, rtol=1e-3)


def test_agrees_with_monai() -> None:
    boxes, anchors = random_boxes(50, 1), random_boxes(50, 2)
    coder = BoxCoder(weights=(1.0,) * 6)
    deltas = coder.encode_single(boxes, anchors)
    torch.testing.assert_close(encode(boxes, anchors), deltas)
    wild = deltas * 3
    torch.testing.assert_close(decode(wild, anchors), coder.decode_single(wild, anchors), atol=1e-3, rtol=1e-5)


def test_sides_are_bounded() -> None:
    anchors = torch.tensor([[0.0, 0, 0, 16, 16, 16]])
    huge = decode(torch.tensor([[0.0, 0, 0, 50, 50, 50]]), anchors)
    torch.testing.assert_close(huge[0, 3:] - huge[0, :3], torch.full((3,), 1000.0), atol=1e-2, rtol=0)
    assert MAX_LOG_RATIO > 4.13


def test_half_precision_deltas_are_decoded_in_float32() -> None:
    """In fp16 a place beyond 256 voxels is rounded to a quarter voxel."""
    anchors = torch.tensor([[300.1, 300.1, 300.1, 308.3, 308.3, 308.3]])
    decoded = decode(torch.zeros((1, 6), dtype=torch.float16), anchors)
    torch.testing.assert_close(decoded, anchors)
