"""Windows over a scan: their order, their padding, their intensity and their precision."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.bright_scans import SPACING_MM, BrightConfig, BrightLabels, bright_recipe, sphere_scan
from voxray.core.outputs import DetectionOutput, SegmentationOutput
from voxray.core.recipe import Recipe, parse_recipe
from voxray.core.volume import Grid
from voxray.inference.sliding import cut, in_float32, in_turn, slide
from voxray.runtimes import Runtime
from voxray.runtimes.protocol import PlainNetwork
from voxray.tasks import build_task

CPU = torch.device("cpu")


class Watching(nn.Module):
    """Answers with its input, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> SegmentationOutput:
        """The images as logits."""
        self.seen.append(images.clone())
        return SegmentationOutput(torch.cat([images, -images], dim=1))


def run(image: Any, recipe: Recipe, model: nn.Module, **options: Any) -> list[tuple[Any, Tensor]]:
    return list(
        slide(
            image, [PlainNetwork(model, CPU)], build_task(recipe, ("bright",)), recipe=recipe, device=CPU, **options
        )
    )


def with_inference(**fields: Any) -> Recipe:
    return bright_recipe("segmentation", **{"window_vox": (32, 32, 32), "overlap": 0.5} | fields)


def test_windows_cover_the_scan_in_order_of_its_longest_axis(rng: np.random.Generator) -> None:
    image = rng.integers(-1000, 1000, (40, 90, 33), dtype=np.int16)
    found = run(image, with_inference(batch_size=3), Watching())
    starts = [start for start, _ in found]
    assert [start[1] for start in starts] == sorted(start[1] for start in starts)
    covered = np.zeros(image.shape, bool)
    for start, logits in found:
        place = tuple(slice(first, first + side) for first, side in zip(start, logits.shape[1:], strict=True))
        covered[place] = True
        expected = (image[place].astype(np.float32) + 1000) / 2000
        inside = tuple(slice(side) for side in expected.shape)
        np.testing.assert_allclose(logits[0].numpy()[inside], expected, atol=1e-6)
    assert covered.all()


def test_batches_are_as_large_as_asked(rng: np.random.Generator) -> None:
    image = rng.integers(-1000, 1000, (64, 32, 32), dtype=np.int16)
    model = Watching()
    found = run(image, with_inference(batch_size=2), model)
    assert [len(images) for images in model.seen] == [2] * (len(found) // 2) + [1] * (len(found) % 2)


def test_windows_are_made_one_batch_at_a_time(rng: np.random.Generator) -> None:
    image = rng.integers(-1000, 1000, (96, 32, 32), dtype=np.int16)
    model, recipe = Watching(), with_inference(batch_size=1)
    windows = slide(image, [PlainNetwork(model, CPU)], build_task(recipe, ("bright",)), recipe=recipe, device=CPU)
    next(windows)
    assert len(model.seen) == 1


@pytest.mark.parametrize(("padding", "beyond"), [("constant", -1024), ("replicate", 77)])
def test_what_lies_beyond_the_scan(padding: str, beyond: int) -> None:
    image = np.full((6, 6, 6), 77, np.int16)
    crop = cut(image, (4, 0, 0), (4, 6, 8), recipe=with_inference(padding=padding))
    assert crop.shape == (4, 6, 8)
    assert (crop[:2, :, :6] == 77).all()
    assert (crop[2:] == beyond).all()
    assert (crop[:, :, 6:] == beyond).all()


def test_intensity_is_the_whole_volumes() -> None:
    image = np.full((64, 32, 32), -500, np.int16)
    image[32:] = 700
    data = with_inference().model_dump(mode="json") | {"intensity": {"kind": "zscore_minmax"}}
    recipe = parse_recipe(data, {"bright": BrightConfig}, where="z")
    found = run(image, recipe, Watching())
    assert float(found[0][1][0].max()) == pytest.approx(-1.0)
    assert float(found[-1][1][0].min()) == pytest.approx(1.0)


def test_half_precision_is_the_networks_alone() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 2, 1)
            self.kind: torch.dtype | None = None

        def forward(self, images: Tensor) -> SegmentationOutput:
            logits = self.conv(images)
            self.kind = logits.dtype
            return SegmentationOutput(logits)

    model = Linear()
    ((_, logits),) = run(np.zeros((32, 32, 32), np.int16), with_inference(), model, amp="bf16")
    assert model.kind == torch.bfloat16
    assert logits.dtype == torch.float32
    run(np.zeros((32, 32, 32), np.int16), with_inference(), model)
    assert model.kind == torch.float32


def test_every_tensor_of_an_output_becomes_float32() -> None:
    half = torch.ones(1, dtype=torch.float16)
    output = in_float32(DetectionOutput((half, half), (half,)))
    assert isinstance(output, DetectionOutput)
    assert {part.dtype for maps in output for part in maps} == {torch.float32}


def test_answers_carry_no_gradient() -> None:
    found = run(np.zeros((32, 32, 32), np.int16), with_inference(), BrightLabels())
    assert not found[0][1].requires_grad


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_items_order(workers: int) -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.01 if number == 0 else 0)
        return number * number

    assert list(in_turn(slow_at_first, range(7), workers=workers)) == [number * number for number in range(7)]
    with pytest.raises(ZeroDivisionError):
        list(in_turn(lambda number: 1 // number, [1, 0], workers=workers))


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_streams_change_nothing(task: str) -> None:
    class InStreams(Runtime):
        """A runtime that takes three batches at once."""

        name, precision, device, streams = "streams", "fp32", CPU, 3

        def __init__(self, model: nn.Module) -> None:
            self.model = model

        def __call__(self, images: Tensor) -> Any:
            return self.model(images)

    image = sphere_scan(np.eye(3), angles_deg=(0, 0, 0), spacing_mm=SPACING_MM)[0].hounsfield
    recipe = bright_recipe(task, batch_size=1, window_vox=(32, 32, 32))
    model = BrightConfig().build(recipe, 1)
    work = build_task(recipe, ("bright",))
    one = list(slide(image, [PlainNetwork(model, CPU)], work, recipe=recipe, device=CPU))
    several = list(slide(image, [InStreams(model)], work, recipe=recipe, device=CPU))
    assert len(one) > 5
    for (place, answer), (other_place, other) in zip(one, several, strict=True):
        assert place == other_place
        for part, other_part in zip(answer, other, strict=True):
            assert torch.equal(part, other_part) if isinstance(part, Tensor) else part == other_part


def test_mirrors_of_a_symmetric_network_change_nothing(rng: np.random.Generator) -> None:
    image = rng.integers(-1000, 1000, (40, 33, 36), dtype=np.int16)
    plain = run(image, with_inference(), BrightLabels())
    mirrored = run(image, with_inference(mirrors=[[0], [1, 2], [0, 1, 2]]), BrightLabels())
    for (place, logits), (other_place, other) in zip(plain, mirrored, strict=True):
        assert place == other_place
        assert torch.equal(logits, other)


def test_mirrored_boxes_are_turned_back() -> None:
    image = np.full((40, 33, 36), -1000, np.int16)
    image[9:20, 14:22, 5:13] = image[28:36, 3:9, 20:30] = 900
    grid = Grid((40, 33, 36), (1.0, 1.5, 2.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    found = []
    for mirrors in ([], [[0], [1, 2], [0, 1, 2]]):
        recipe = bright_recipe("detection", window_vox=(32, 32, 32), mirrors=mirrors)
        task = build_task(recipe, ("bright",))
        model = BrightConfig().build(recipe, 1)
        windows = list(slide(image, [PlainNetwork(model, CPU)], task, recipe=recipe, device=CPU))
        found.append((windows, task.merge(windows, grid, recipe.merge)))
    (plain, boxes), (mirrored, others) = found
    assert all(len(more[1].boxes) == 4 * len(one[1].boxes) for one, more in zip(plain, mirrored, strict=True))
    assert len(boxes.boxes) > 0
    np.testing.assert_allclose(others.boxes, boxes.boxes, atol=1e-4)


def test_members_answer_with_their_mean(rng: np.random.Generator) -> None:
    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, images: Tensor) -> SegmentationOutput:
            return SegmentationOutput(torch.cat([-images, images + self.value], dim=1))

    image = rng.integers(-1000, 1000, (33, 32, 32), dtype=np.int16)
    recipe = with_inference()
    members = [PlainNetwork(Constant(value), CPU) for value in (0.0, 1.0, 5.0)]
    task = build_task(recipe, ("bright",))
    found = list(slide(image, members, task, recipe=recipe, device=CPU))
    expected = list(slide(image, [PlainNetwork(Constant(2.0), CPU)], task, recipe=recipe, device=CPU))
    for (_, logits), (_, mean) in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, mean)


def test_what_is_left_when_the_answers_are_no_longer_wanted_is_not_begun() -> None:
    begun: list[int] = []

    def slow(number: int) -> int:
        begun.append(number)
        time.sleep(0.2)
        return number

    answers = in_turn(slow, range(50), workers=2)
    assert next(answers) == 0
    answers.close()  # type: ignore[attr-defined]
    count = len(begun)
    time.sleep(0.5)
    assert len(begun) == count <= 5
