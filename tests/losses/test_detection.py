"""The detection loss: MONAI's values, gradients for every parameter, and one value for any number of workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.apps.detection.utils.box_coder import BoxCoder
from torch import Tensor
from torch.nn import functional

from voxray.boxes.anchors import AnchorLevel, anchor_levels, per_anchor
from voxray.boxes.assign import sample
from voxray.core.batch import IGNORED, PADDING, Batch
from voxray.core.outputs import DetectionOutput
from voxray.core.recipe import AnchorConfig, DetectionLoss
from voxray.losses import Reduce, local
from voxray.losses.detection import assign_batch, detection_loss, draw
from voxray.models.retinanet import RetinaNet, RetinaNetConfig

WINDOW = (32, 32, 16)
CONFIG = RetinaNetConfig(backbone="resnet10", width=8, channels=8, norm_groups=2)
ANCHORS = AnchorConfig(base_shapes_vox=((6, 8, 4), (8, 6, 5)), level_scales=(1, 2, 4))
LOSS = DetectionLoss()


def levels() -> tuple[AnchorLevel, ...]:
    shapes = [
        [side // step for side, step in zip(WINDOW, stride, strict=True)] for stride in CONFIG.level_strides_vox
    ]
    return anchor_levels(ANCHORS, shapes, CONFIG.level_strides_vox)


def network(seed: int = 0) -> RetinaNet:
    """A small network in eval mode, where no norm ties the patches of a batch together."""
    torch.manual_seed(seed)
    return RetinaNet(CONFIG, num_anchors=2, num_classes=2).eval()


def batch_of(classes: list[list[int]], seed: int = 0) -> Batch:
    """Patches of noise with random objects of these classes."""
    rng = torch.Generator().manual_seed(seed)
    shape = (len(classes), len(classes[0]), 3)
    sides = 4 + torch.rand(shape, generator=rng) * 8
    low = torch.rand(shape, generator=rng) * (torch.tensor(WINDOW) - sides)
    images = torch.rand((len(classes), 1, *WINDOW), generator=rng)
    return Batch(images, torch.cat([low, low + sides], dim=2), torch.tensor(classes, dtype=torch.int64), None)


def parts_of(
    output: DetectionOutput,
    batch: Batch,
    *,
    loss: DetectionLoss = LOSS,
    reduce: Reduce = local,
    draws: Tensor | None = None,
) -> dict[str, Tensor]:
    assignment = assign_batch(batch, levels(), loss)
    if draws is None:
        draws = draw(assignment, loss, torch.Generator().manual_seed(7))
    return detection_loss(output, batch, assignment, draws, loss=loss, reduce=reduce)


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_as_written_out(box_loss: str) -> None:
    """The same means, computed one by one over the anchors that were sampled."""
    loss = DetectionLoss.model_validate({"box_loss": box_loss, "class_weight": 2.0, "box_weight": 0.5})
    batch = batch_of([[0, 1, PADDING], [1, IGNORED, PADDING]])
    output = network()(batch.images)
    assignment = assign_batch(batch, levels(), loss)
    draws = draw(assignment, loss, torch.Generator().manual_seed(7))
    parts = detection_loss(output, batch, assignment, draws, loss=loss, reduce=local)

    logits, deltas = per_anchor(output.class_logits, 2), per_anchor(output.box_deltas, 2)
    chosen = sample(assignment, logits.amax(dim=2), draws, loss)
    entropies, regressions = [], []
    for image in range(2):
        for slot in chosen.positives[image][chosen.is_positive[image]].tolist():
            number, item = int(assignment.anchors[image, slot]), int(assignment.objects[image, slot])
            target = functional.one_hot(batch.classes[image, item], 2).float()
            entropies.append(functional.binary_cross_entropy_with_logits(logits[image, number], target))
            anchor, box = assignment.anchor_boxes[image, slot][None], batch.boxes[image, item][None]
            regressions.append(_box_term(box_loss, deltas[image, number][None], anchor, box))
        negatives = logits[image, chosen.negatives[image][chosen.is_negative[image]]]
        entropies += [functional.binary_cross_entropy_with_logits(row, torch.zeros(2)) for row in negatives]
    assert len(regressions) > 4
    torch.testing.assert_close(parts["class"], 2.0 * torch.stack(entropies).mean())
    torch.testing.assert_close(parts["box"], 0.5 * torch.stack(regressions).mean())


def _box_term(kind: str, deltas: Tensor, anchor: Tensor, box: Tensor) -> Tensor:
    coder = BoxCoder(weights=(1.0,) * 6)
    if kind == "smooth_l1":
        return functional.smooth_l1_loss(deltas, coder.encode_single(box, anchor), beta=1 / 9)
    decoded = coder.decode_single(deltas, anchor)[0]
    low, high = torch.maximum(decoded[:3], box[0, :3]), torch.minimum(decoded[3:], box[0, 3:])
    shared = (high - low).clamp_min(0).prod()
    union = (decoded[3:] - decoded[:3]).prod() + (box[0, 3:] - box[0, :3]).prod() - shared
    hull = (torch.maximum(decoded[3:], box[0, 3:]) - torch.minimum(decoded[:3], box[0, :3])).prod()
    return 1 - shared / union + (hull - union) / hull


@pytest.mark.parametrize("classes", [[[PADDING]], [[]], [[IGNORED]]])
def test_batch_without_objects_gives_every_parameter_a_gradient(classes: list[list[int]]) -> None:
    """Otherwise distributed training would wait for ever for the regression head's gradients."""
    model, batch = network(), batch_of(classes)
    parts = parts_of(model(batch.images), batch)
    sum(parts.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(float(p.grad.abs().max()) == 0 for p in model.regression_head.parameters() if p.grad is not None)
    assert parts["box"].item() == 0
    assert parts["class"].item() > 0


@pytest.mark.parametrize(("shares", "seed"), [((1, 3), 1), ((2, 2), 2), ((1, 1, 2), 3)])
def test_workers_give_the_gradient_of_one(shares: tuple[int, ...], seed: int) -> None:
    """Patches dealt to workers, means of their gradients taken as DDP does, against one worker with all patches."""
    batch = batch_of([[0, 1], [PADDING, PADDING], [1, IGNORED], [1, 1]], seed)
    assignment = assign_batch(batch, levels(), LOSS)
    draws = draw(assignment, LOSS, torch.Generator().manual_seed(seed))
    together = _gradient(network(), batch, draws, local)
    hands = list(
        zip(
            *(torch.split(part, list(shares)) for part in (batch.images, batch.boxes, batch.classes, draws)),
            strict=True,
        )
    )
    batches = [(Batch(images, boxes, classes, None), own) for images, boxes, classes, own in hands]

    sums: list[Tensor] = []
    for share, own in batches:
        parts_of(network()(share.images), share, draws=own, reduce=_noting(sums))
    total = torch.stack(sums).sum(dim=0).detach()
    apart = [_gradient(network(), share, own, _as_if_reduced(total)) for share, own in batches]
    for index, (value, gradient) in enumerate(apart):
        torch.testing.assert_close(value, together[0], msg=f"value of worker {index}")
        del gradient
    for one, *parts in zip(together[1], *(gradient for _, gradient in apart), strict=True):
        mean_of_scaled = torch.stack([len(shares) * part for part in parts]).mean(dim=0)
        torch.testing.assert_close(mean_of_scaled, one, rtol=1e-4, atol=1e-6)


def _noting(sums: list[Tensor]) -> Reduce:
    def reduce(value: Tensor) -> Tensor:
        sums.append(value)
        return value

    return reduce


def _as_if_reduced(total: Tensor) -> Callable[[Tensor], Tensor]:
    """The sum over ranks with the gradient of the local summand, as a training loop has it."""
    return lambda value: value + (total - value).detach()


def _gradient(model: RetinaNet, batch: Batch, draws: Tensor, reduce: Reduce) -> tuple[Tensor, list[Tensor]]:
    value = sum(parts_of(model(batch.images), batch, draws=draws, reduce=reduce).values(), torch.zeros(()))
    return value.detach(), list(torch.autograd.grad(value, list(model.parameters())))


def test_float32_whatever_the_network_ran_in() -> None:
    batch = batch_of([[0, 1]])
    output = network()(batch.images)
    half = DetectionOutput(
        tuple(m.bfloat16() for m in output.class_logits), tuple(m.bfloat16() for m in output.box_deltas)
    )
    expected = parts_of(DetectionOutput(*(tuple(m.float() for m in maps) for maps in half)), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = parts_of(half, batch)
    for name, value in parts.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])


def test_overflow_shows_as_not_finite() -> None:
    """So that a loss scaler can skip the step instead of an exception that ends the run."""
    batch = batch_of([[0, 1]])
    output = network()(batch.images)
    broken = DetectionOutput(tuple(torch.full_like(m, torch.inf) for m in output.class_logits), output.box_deltas)
    assert not torch.isfinite(parts_of(broken, batch)["class"])


def test_draws_come_from_torchs_own_generator() -> None:
    """Its state is part of a checkpoint, so a resumed run draws what an uninterrupted one would have."""
    assignment = assign_batch(batch_of([[0, 1]]), levels(), LOSS)
    torch.manual_seed(5)
    draw(assignment, LOSS)
    state = torch.get_rng_state()
    expected = draw(assignment, LOSS)
    torch.set_rng_state(state)
    assert torch.equal(draw(assignment, LOSS), expected)


def test_ignored_region_changes_nothing_but_what_it_hides() -> None:
    """A region over all hard negatives takes them out of the loss; without it they count."""
    batch = batch_of([[0, IGNORED]])
    boxes = batch.boxes.clone()
    boxes[0, 1] = torch.tensor([0.0, 0, 0, *WINDOW])
    hidden = parts_of(network()(batch.images), batch._replace(boxes=boxes))
    shown = parts_of(network()(batch.images), batch._replace(classes=torch.tensor([[0, PADDING]])))
    assert torch.equal(hidden["box"], shown["box"])
    assert hidden["class"] > shown["class"]
