"""What every network of MODELS must keep to. A new one needs a small recipe in SMALL, and is covered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from voxray.core.batch import PADDING, Batch
from voxray.core.case import Case
from voxray.core.config import to_json
from voxray.core.outputs import DetectionOutput, Output, SegmentationOutput
from voxray.core.recipe import NetworkConfig, Recipe, parse_recipe
from voxray.core.volume import Grid, Volume
from voxray.losses import local
from voxray.models import MODELS
from voxray.recipes import published, read_recipe
from voxray.tasks import build_task

SMALL: dict[str, tuple[str, list[str]]] = {
    "unet": (
        "spleen",
        [
            'network={kind="unet",channels=[8,16,16],strides=[2,2],num_res_units=1}',
            "patch.size_vox=[16,16,16]",
            "inference.window_vox=[16,16,16]",
        ],
    ),
    "segresnet": (
        "whole_body",
        [
            'network={kind="segresnet",init_filters=8,blocks_down=[1,1,1],blocks_up=[1,1],dropout=0.0}',
            "patch.size_vox=[16,16,16]",
            "inference.window_vox=[16,16,16]",
        ],
    ),
    "retinanet": (
        "lung_nodule",
        [
            'network={kind="retinanet",backbone="resnet10",width=8,channels=16,norm_groups=4}',
            "patch.size_vox=[32,32,16]",
            "inference.window_vox=[32,32,16]",
        ],
    ),
}
PUBLISHED_KEYS = {"lung_nodule": 190, "spleen": 148, "whole_body": 83}
"""Entries of the published state dicts."""

CLASSES = ("first", "second")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and lose much where the processor is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_model_has_a_small_recipe_here() -> None:
    assert set(SMALL) == set(MODELS)


def _recipe(kind: str) -> Recipe:
    name, overrides = SMALL[kind]
    return read_recipe(name, overrides)


def _network(recipe: Recipe, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = recipe.network.build(recipe, len(CLASSES))
    return network


def _images(recipe: Recipe, size: int = 2) -> Tensor:
    return torch.randn((size, 1, *recipe.patch.size_vox), generator=torch.Generator().manual_seed(3))


def _tensors(output: Output) -> list[Tensor]:
    if isinstance(output, DetectionOutput):
        return [*output.class_logits, *output.box_deltas]
    return list(output)


@pytest.mark.parametrize("name", PUBLISHED_KEYS)
def test_published_recipes_build_networks_with_the_published_names(name: str) -> None:
    recipe = read_recipe(name)
    with torch.device("meta"):
        network = recipe.network.build(recipe, len(published(name).classes))
    assert len(network.state_dict()) == PUBLISHED_KEYS[name]


@pytest.mark.parametrize("kind", SMALL)
def test_output_has_the_tasks_type_and_shape(kind: str) -> None:
    recipe = _recipe(kind)
    network = _network(recipe)
    for factor in (1, 2):
        sides = [factor * step * 2 for step in recipe.network.stride_vox]
        output = network(torch.zeros((2, 1, *sides)))
        if recipe.task == "segmentation":
            assert isinstance(output, SegmentationOutput)
            assert output.logits.shape == (2, len(CLASSES) + 1, *sides)
            continue
        assert isinstance(output, DetectionOutput)
        assert recipe.anchors is not None
        num_anchors = len(recipe.anchors.base_shapes_vox)
        strides = recipe.network.level_strides_vox
        assert len(strides) == len(recipe.anchors.level_scales)
        for logits, deltas, stride in zip(output.class_logits, output.box_deltas, strides, strict=True):
            places = tuple(side // step for side, step in zip(sides, stride, strict=True))
            assert logits.shape == (2, num_anchors * len(CLASSES), *places)
            assert deltas.shape == (2, num_anchors * 6, *places)


@pytest.mark.parametrize("kind", SMALL)
def test_a_patch_is_answered_alike_in_any_batch(kind: str) -> None:
    recipe = _recipe(kind)
    network = _network(recipe).eval()
    images = _images(recipe, 3)
    with torch.inference_mode():
        together, alone = network(images), network(images[1:2])
    for whole, part in zip(_tensors(together), _tensors(alone), strict=True):
        torch.testing.assert_close(whole[1:2], part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_the_configuration_survives_the_way_through_json(kind: str) -> None:
    recipe = _recipe(kind)
    back = parse_recipe(json.loads(to_json(recipe)), MODELS, where="copy")
    assert back == recipe
    assert type(back.network) is MODELS[kind]
    assert isinstance(back.network, NetworkConfig)


@pytest.mark.parametrize("kind", SMALL)
def test_weights_are_plain_and_load_back(kind: str) -> None:
    recipe = _recipe(kind)
    first, second = _network(recipe, 0).eval(), _network(recipe, 1).eval()
    second.load_state_dict(first.state_dict())
    with torch.inference_mode():
        pairs = zip(_tensors(first(_images(recipe))), _tensors(second(_images(recipe))), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("kind", SMALL)
def test_every_weight_learns(kind: str) -> None:
    """A weight without a gradient would stop data-parallel training."""
    recipe = _recipe(kind)
    network = _network(recipe)
    batch, _ = _one_object(recipe)
    for truth in (batch, batch._replace(classes=torch.full_like(batch.classes, PADDING))):
        network.zero_grad()
        parts = build_task(recipe, CLASSES).loss(network(truth.images), truth, local)
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        assert [name for name, value in network.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("kind", SMALL)
def test_one_patch_can_be_learnt_by_heart(kind: str) -> None:
    recipe = _recipe(kind)
    network, task = _network(recipe), build_task(recipe, CLASSES)
    batch, case = _one_object(recipe)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    torch.manual_seed(0)
    losses = []
    for _ in range(45):
        optimizer.zero_grad()
        loss = torch.stack(list(task.loss(network(batch.images), batch, local).values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 3
    with torch.inference_mode():
        decoded = task.decode(network.train()(batch.images))
        answer = task.merge([((0, 0, 0), decoded[0])], case.image.grid, recipe.merge)
    assert task.score([answer], [case])[task.primary_metric] > 0.9


def _one_object(recipe: Recipe) -> tuple[Batch, Case]:
    """A patch with one bright block of the second class, as a batch and as a case."""
    shape = recipe.patch.size_vox
    corner, end = np.array([4, 5, 5]), np.array([14, 13, 11])
    inside = tuple(slice(first, last) for first, last in zip(corner, end, strict=True))
    labels = np.zeros(shape, np.uint8)
    labels[inside] = 2
    image = np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)
    image[inside] += 1
    boxes = np.concatenate([corner, end])[None].astype(np.float64)
    batch = Batch(
        images=torch.from_numpy(image)[None, None],
        boxes=torch.from_numpy(boxes).float()[None],
        classes=torch.ones((1, 1), dtype=torch.int64),
        labels=torch.from_numpy(labels)[None],
    )
    grid = Grid(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    volume = Volume(np.zeros(shape, np.int16), grid)
    return batch, Case("case", "patient", volume, boxes, np.ones(1, np.int64), labels)


class _Flat(nn.Module):
    """The network with its tensors as a plain tuple, as an exported file has them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.network(images)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SMALL)
def test_onnx_answers_alike(kind: str, tmp_path: Path) -> None:
    runtime: Any = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    recipe = _recipe(kind)
    network, images, path = _Flat(_network(recipe)).eval(), _images(recipe), tmp_path / "model.onnx"
    batch = torch.export.Dim("batch", min=1, max=16)
    torch.onnx.export(
        network,
        (images,),
        path,
        dynamo=True,
        external_data=False,
        dynamic_shapes={"images": {0: batch}},
        verbose=False,
    )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for part in (images, images[:1]):
        with torch.inference_mode():
            expected = network(part)
        found = session.run(None, {session.get_inputs()[0].name: part.numpy()})
        for ours, theirs in zip(expected, found, strict=True):
            assert np.abs(ours.numpy() - theirs).max() <= 1e-4 * max(1.0, float(ours.abs().max()))
