from __future__ import annotations

from itertools import product

import pytest
import torch
from monai.losses.dice import DiceCELoss
from torch import Tensor

from voxray.core.recipe import SegmentationLoss
from voxray.losses import Reduce, local, segmentation
from voxray.losses.segmentation import segmentation_loss

SETTINGS = [
    SegmentationLoss(squared=squared, batch_dice=batch, background=background, dice_weight=0.5, ce_weight=0.7)
    for squared, batch, background in product((False, True), repeat=3)
]


def _example(seed: int, *, patches: int = 4, classes: int = 5, side: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((patches, classes, side, side + 1, side + 2), generator=generator)
    labels = torch.randint(0, classes, (patches, side, side + 1, side + 2), generator=generator, dtype=torch.uint8)
    labels[0] = 0
    return logits.requires_grad_(), labels


def _sum(parts: dict[str, Tensor]) -> Tensor:
    return parts["dice"] + parts["ce"]


def _with_the_sums_of(logits: Tensor, labels: Tensor, config: SegmentationLoss) -> Reduce:
    """The `Reduce` of a rank whose only other rank holds this share."""
    seen: list[Tensor] = []

    def remember(sums: Tensor) -> Tensor:
        seen.append(sums.detach())
        return sums

    segmentation_loss(logits, labels, config, remember)
    remaining = iter(seen)
    return lambda sums: sums + next(remaining)


def _names(config: SegmentationLoss) -> str:
    return f"squared={config.squared} batch={config.batch_dice} background={config.background}"


@pytest.mark.parametrize("config", SETTINGS, ids=_names)
@pytest.mark.parametrize("slab", [1, 2**23], ids=["voxel by voxel", "at once"])
def test_value_and_gradient_equal_monai(config: SegmentationLoss, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "SLAB_ELEMENTS", slab)
    logits, labels = _example(1)
    reference = DiceCELoss(
        include_background=config.background,
        to_onehot_y=True,
        softmax=True,
        squared_pred=config.squared,
        batch=config.batch_dice,
        smooth_nr=config.smooth,
        smooth_dr=config.smooth,
        lambda_dice=config.dice_weight,
        lambda_ce=config.ce_weight,
    )
    theirs = reference(logits, labels[:, None])
    ours = _sum(segmentation_loss(logits, labels, config, local))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (expected,) = torch.autograd.grad(theirs, logits)
    (gradient,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)


def test_gradient_by_finite_differences() -> None:
    logits, labels = _example(2, patches=2, classes=3, side=2)
    config = SegmentationLoss(squared=True, smooth=1.0)
    (gradient,) = torch.autograd.grad(_sum(segmentation_loss(logits, labels, config, local)), logits)
    place, step = (1, 2, 0, 1, 1), 3e-2
    values = []
    for sign in (1, -1):
        moved = logits.detach().clone()
        moved[place] += sign * step
        values.append(float(_sum(segmentation_loss(moved, labels, config, local))))
    assert gradient[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=2e-5)


@pytest.mark.parametrize("config", SETTINGS, ids=_names)
def test_two_ranks_give_the_gradient_of_one_with_twice_the_batch(config: SegmentationLoss) -> None:
    """The ranks' shares differ in size, so a mean of means would be another gradient."""
    logits, labels = _example(3, patches=4)
    whole = _sum(segmentation_loss(logits, labels, config, local))
    (expected,) = torch.autograd.grad(whole, logits)
    shares = [(logits.detach()[part].requires_grad_(), labels[part]) for part in (slice(0, 1), slice(1, 4))]
    for rank, (mine, truth) in enumerate(shares):
        value = _sum(segmentation_loss(mine, truth, config, _with_the_sums_of(*shares[1 - rank], config)))
        torch.testing.assert_close(value, whole)
        (gradient,) = torch.autograd.grad(value, mine)
        torch.testing.assert_close(
            gradient, expected[slice(0, 1) if rank == 0 else slice(1, 4)], rtol=1e-4, atol=1e-8
        )


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, labels = _example(4)
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = segmentation_loss(half, labels, SegmentationLoss(), local)
    exact = segmentation_loss(half.detach().float(), labels, SegmentationLoss(), local)
    for name, value in parts.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name])
    (gradient,) = torch.autograd.grad(_sum(parts), half)
    assert gradient.dtype == torch.bfloat16


def test_a_perfect_answer_costs_nothing() -> None:
    labels = torch.zeros((1, 4, 4, 4), dtype=torch.uint8)
    labels[:, :2] = 1
    logits = 50 * torch.nn.functional.one_hot(labels.long(), 2).movedim(-1, 1).float()
    parts = segmentation_loss(logits, labels, SegmentationLoss(), local)
    assert float(parts["dice"]) == pytest.approx(0, abs=1e-6)
    assert float(parts["ce"]) == pytest.approx(0, abs=1e-6)
