from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from voxray.core.batch import Batch
from voxray.core.case import Case
from voxray.core.errors import ConfigError, DataError
from voxray.core.outputs import SegmentationOutput
from voxray.core.recipe import Recipe, SegmentationMerge
from voxray.core.volume import Grid, Shape, Volume
from voxray.losses import local
from voxray.recipes import read_recipe
from voxray.tasks import build_task
from voxray.tasks.labels import labels_of, tidy
from voxray.tasks.mirror import swapped_sides
from voxray.tasks.segmentation import SegmentationTask, selected, thresholds_of
from voxray.tasks.stitch import blocks
from voxray.windows import Lattice, blend_weights, lattice, windows_over

PLAIN = SegmentationMerge()


def _recipe(blend: str = "gaussian") -> Recipe:
    return read_recipe("spleen", [f"inference.blend={blend}"])


def _grid(shape: Shape, spacing_mm: float = 1.0) -> Grid:
    return Grid(shape, (spacing_mm,) * 3, (0.0, 0.0, 0.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))


def _case(labels: NDArray[np.uint8]) -> Case:
    x, y, z = labels.shape
    image = Volume(np.zeros(labels.shape, np.int16), _grid((x, y, z)))
    return Case("case", "patient", image, np.zeros((0, 6)), np.zeros(0, np.int64), labels)


def _windows(logits: Tensor, starts: list[Shape], window: Shape) -> Iterator[tuple[Shape, Tensor]]:
    """What a network would give for each window that the whole scan's `logits` are known for."""
    for start in starts:
        corner = [slice(first, first + side) for first, side in zip(start, window, strict=True)]
        part = logits[:, *corner]
        missing = [side - length for side, length in zip(window, part.shape[1:], strict=True)]
        yield start, torch.nn.functional.pad(part, (0, missing[2], 0, missing[1], 0, missing[0]), value=99.0)


def _stitched(windows: Iterable[tuple[Shape, Tensor]], places: Lattice, blend: str, **how: Any) -> NDArray[np.uint8]:
    labels = np.full(places.shape, 255, np.uint8)
    for (x, y, z), sums in blocks(windows, places, blend=blend, **how):  # type: ignore[arg-type]
        found = labels_of(sums).numpy()
        target = labels[x : x + found.shape[0], y : y + found.shape[1], z : z + found.shape[2]]
        assert (target == 255).all(), "each voxel is finished once"
        target[:] = found
    assert (labels < 255).all()
    return labels


def _stitched_whole(windows: list[tuple[Shape, Tensor]], shape: Shape, blend: str) -> NDArray[np.uint8]:
    """All classes for the whole scan, as it is done elsewhere: blend, divide, softmax, argmax."""
    return _mean_logits(windows, shape, blend).softmax(0).argmax(0).numpy().astype(np.uint8)


def _mean_logits(windows: list[tuple[Shape, Tensor]], shape: Shape, blend: str) -> Tensor:
    window = windows[0][1].shape[1:]
    weights = blend_weights((window[0], window[1], window[2]), blend)  # type: ignore[arg-type]
    padded = [length + side for length, side in zip(shape, window, strict=True)]
    sums, total = torch.zeros((len(windows[0][1]), *padded), dtype=torch.float64), torch.zeros(padded)
    for start, logits in windows:
        corner = [slice(first, first + side) for first, side in zip(start, window, strict=True)]
        sums[:, *corner] += logits.double() * weights
        total[*corner] += weights
    return (sums / total.clamp_min(1e-9))[:, : shape[0], : shape[1], : shape[2]]


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*(st.integers(5, 30) for _ in range(3))),
    st.sampled_from([(8, 8, 8), (16, 8, 12), (8, 16, 4)]),
    st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    st.sampled_from(["constant", "gaussian"]),
    st.integers(0, 2**32 - 1),
)
def test_streamed_labels_equal_those_of_the_whole_scan(
    shape: Shape, window: Shape, overlap: float, blend: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    places = lattice(shape, window=window, overlap=overlap, stride=(4, 4, 4))
    windows = [(start, torch.randn((5, *places.window), generator=generator)) for start in places.places]
    expected = _stitched_whole(windows, shape, blend)
    np.testing.assert_array_equal(_stitched(iter(windows), places, blend), expected)


@pytest.mark.parametrize("accumulate", [torch.float16, torch.bfloat16])
def test_half_precision_sums_move_few_labels(accumulate: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    places = lattice((40, 24, 33), window=(16, 16, 16), overlap=0.5, stride=(4, 4, 4))
    windows = [(start, torch.randn((9, *places.window), generator=generator)) for start in places.places]
    exact = _stitched(((place, logits.clone()) for place, logits in windows), places, "gaussian")
    rounded = _stitched(windows, places, "gaussian", accumulate=accumulate)
    assert 0.98 < (rounded == exact).mean() < 1


@settings(max_examples=30, deadline=None)
@given(st.tuples(*(st.integers(3, 30) for _ in range(3))), st.sampled_from([0.25, 0.5]), st.integers(1, 3))
def test_shares_are_the_probabilities_of_the_whole_scan(shape: Shape, overlap: float, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    recipe = read_recipe(
        "spleen",
        ["inference.blend=gaussian", f"inference.overlap={overlap}", "inference.window_vox=[16,16,16]"],
    )
    task = SegmentationTask(recipe, [str(index) for index in range(num_classes)])
    places = windows_over(shape, task.recipe)
    windows = [
        (start, torch.randn((num_classes + 1, *places.window), generator=generator)) for start in places.places
    ]
    axis = places.axes[0]
    expected = _mean_logits(windows, shape, "gaussian").softmax(0)
    slabs = list(task.shares(iter(windows), _grid(shape)))
    assert [first for first, _ in slabs] == list(places.starts[axis])
    found = torch.cat([slab for _, slab in slabs], dim=axis + 1)
    if num_classes == 1:
        torch.testing.assert_close((found[0].double() + 1) / 2, expected[1], atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_one_answer_per_window_and_back() -> None:
    logits = torch.randn((3, 40, 20, 36), generator=torch.Generator().manual_seed(0))
    task = SegmentationTask(read_recipe("spleen", ["inference.window_vox=[32,32,32]"]), ["a", "b"])
    places = windows_over((40, 20, 36), task.recipe)
    batch = torch.stack([window for _, window in _windows(logits, places.places, places.window)])
    decoded = task.decode(SegmentationOutput(batch))
    answer = task.merge(zip(places.places, decoded, strict=True), _grid((40, 20, 36)), PLAIN)
    np.testing.assert_array_equal(answer.voxels, logits.argmax(0).numpy())
    assert answer.voxels.dtype == np.uint8


def test_a_window_is_finished_up_to_where_the_next_ones_begin() -> None:
    """Windows are pulled no faster than blocks are finished, and no block waits for a window that cannot touch it."""
    pulled: list[Shape] = []
    places = lattice((72, 24, 4), window=(16, 16, 4), overlap=0.5, stride=(8, 8, 4))

    def windows() -> Iterator[tuple[Shape, Tensor]]:
        for start in places.places:
            pulled.append(start)
            yield start, torch.zeros((2, 16, 16, 4))

    seen = [(first, tuple(sums.shape[1:]), pulled[-1]) for first, sums in blocks(windows(), places, blend="constant")]
    assert seen[:3] == [
        ((0, 0, 0), (8, 8, 4), (0, 0, 0)),
        ((0, 8, 0), (8, 16, 4), (0, 8, 0)),
        ((8, 0, 0), (8, 8, 4), (8, 0, 0)),
    ]
    assert seen[-1] == ((56, 8, 0), (16, 16, 4), (56, 8, 0))


def test_windows_out_of_order_are_our_mistake() -> None:
    places = lattice((16, 8, 8), window=(8, 8, 8), overlap=0, stride=(8, 8, 8))
    windows = [((8, 0, 0), torch.zeros((2, 8, 8, 8))), ((0, 0, 0), torch.zeros((2, 8, 8, 8)))]
    with pytest.raises(AssertionError, match="out of order"):
        list(blocks(windows, places, blend="constant"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_no_label_map(bad: float) -> None:
    task = SegmentationTask(_recipe(), ["a", "b"])
    logits = torch.zeros((3, 16, 16, 16))
    logits[1, 3, 4, 5] = bad
    with pytest.raises(DataError, match="not finite"):
        task.merge([((0, 0, 0), logits)], _grid((16, 16, 16)), PLAIN)
    with pytest.raises(DataError, match="not finite"):
        list(task.shares([((0, 0, 0), logits)], _grid((16, 16, 16))))


def test_mirrored_logits_are_turned_back_with_left_for_right() -> None:
    names = ["kidney_left", "spleen", "rib_right_7", "kidney_right", "rib_left_7", "lung_middle_lobe_right"]
    assert swapped_sides(names) == [3, 1, 4, 0, 2, 5]
    task = SegmentationTask(_recipe(), names)
    logits = torch.randn((7, 4, 5, 6), generator=torch.Generator().manual_seed(0))
    for axes in ((0,), (1,), (0, 2)):
        seen = logits.flip([axis + 1 for axis in axes])
        if 0 in axes:
            seen = seen[[0, 4, 2, 5, 1, 3, 6]]
        assert torch.equal(task.mirror(seen, axes, (4, 5, 6)), logits)


def test_small_components_become_background() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:3, :3, :3] = 1
    labels[5, 5, 5] = 1
    labels[3, 3, 3] = 2  # touches the cube's corner, but is another class
    labels[6, 6, 6] = 1  # touches [5, 5, 5] by a corner: one component of two voxels
    kept = tidy(labels, smallest_vox=2.5)
    assert np.count_nonzero(kept) == 27
    np.testing.assert_array_equal(tidy(labels, smallest_vox=2.0) == 1, labels == 1)
    task = SegmentationTask(_recipe(), ["a", "b"])
    logits = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 3).movedim(-1, 0).float()
    how = SegmentationMerge(min_component_mm3=2.5 * 8)
    answer = task.merge([((0, 0, 0), logits)], _grid((10, 10, 10), spacing_mm=2.0), how)
    np.testing.assert_array_equal(answer.voxels, kept)


def test_score_leaves_out_what_has_no_truth() -> None:
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[:2] = 1
    found = truth.copy()
    found[1] = 3
    task = SegmentationTask(_recipe(), ["spleen", "liver", "kidney"])
    score = task.score([Volume(found, _grid((4, 4, 4)))] * 2, [_case(truth), _case(np.zeros_like(truth))])
    assert score == {"dice": pytest.approx(2 / 3), "dice/spleen": pytest.approx(2 / 3)}
    nothing = task.score([Volume(found, _grid((4, 4, 4)))], [_case(np.zeros_like(truth))])
    assert set(nothing) == {"dice"}
    assert np.isnan(nothing["dice"])


def test_loss_falls_with_a_better_answer() -> None:
    labels = torch.zeros((1, 8, 8, 8), dtype=torch.uint8)
    labels[:, 2:5] = 1
    task = build_task(_recipe(), ["spleen"])
    batch = Batch(
        torch.zeros((1, 1, 8, 8, 8)), torch.zeros((1, 0, 6)), torch.zeros((1, 0), dtype=torch.int64), labels
    )
    good = torch.nn.functional.one_hot(labels.long(), 2).movedim(-1, 1).float()
    losses = [sum(task.loss(SegmentationOutput(scale * good), batch, local).values()) for scale in (-3, 0, 3, 9)]
    assert losses == sorted(losses, reverse=True)


def test_more_classes_than_a_label_map_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 255 classes, got 256"):
        SegmentationTask(_recipe(), [str(index) for index in range(256)])


@pytest.mark.data
def test_real_abdomen_comes_back_from_its_own_windows(shared_data: Path) -> None:
    """TotalSegmentator's labels of a real abdomen, as logits in overlapping windows, give Dice 1 for every class."""
    path = shared_data / "abdomen" / "TS_example_ct_labels117_fast.nii.gz"
    labels = np.ascontiguousarray(np.asarray(nibabel.load(path).dataobj), np.uint8)[:64, :80, :72]  # type: ignore[attr-defined]
    shape = (64, 80, 72)
    names = [str(index) for index in range(1, 118)]
    recipe = read_recipe("spleen", ["inference.window_vox=[32,32,32]", "inference.overlap=0.25"])
    task = SegmentationTask(recipe, names)

    def windows() -> Iterator[tuple[Shape, Tensor]]:
        for x, y, z in windows_over(shape, task.recipe).places:
            part = np.zeros((32, 32, 32), np.int64)
            inside = labels[x : x + 32, y : y + 32, z : z + 32]
            part[tuple(slice(side) for side in inside.shape)] = inside
            yield (x, y, z), torch.nn.functional.one_hot(torch.from_numpy(part), 118).movedim(-1, 0).half()

    answer = task.merge(windows(), _grid(shape), PLAIN)
    score = task.score([answer], [_case(labels)])
    assert score["dice"] == 1.0
    assert len(score) == 1 + len(np.unique(labels[labels > 0]))


ORGANS = ("spleen", "liver", "kidney")


def test_thresholds_by_name_come_before_the_common_one() -> None:
    assert thresholds_of(SegmentationMerge(), ORGANS) is None
    how = SegmentationMerge(threshold=0.4, thresholds={"liver": 0.2})
    assert thresholds_of(how, ORGANS) == [0.4, 0.2, 0.4]
    assert thresholds_of(SegmentationMerge(thresholds={"liver": 0.2}), ORGANS) == [None, 0.2, None]


def test_classes_are_selected_by_name() -> None:
    assert selected(False, ORGANS, field="merge.fill_holes") == []
    assert selected(True, ORGANS, field="merge.fill_holes") == [1, 2, 3]
    assert selected(("kidney", "spleen"), ORGANS, field="merge.fill_holes") == [3, 1]


def test_a_class_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"merge.thresholds: no class is named 'splen'; did you mean 'spleen'\?"):
        thresholds_of(SegmentationMerge(thresholds={"splen": 0.2}), ORGANS)
    with pytest.raises(ConfigError, match=r"merge.fill_holes: no class is named 'x'; classes are spleen, liver, kid"):
        selected(("x",), ORGANS, field="merge.fill_holes")
