"""The last layer of a network of many classes, off a torch module: the same answer, and the same weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from support.many_classes import MANY, Whole, answered, many_classes, some_patches
from support.small_networks import SMALL, exported, furthest
from voxray.runtimes import open_runtime
from voxray.runtimes.torch_eager import TorchRuntime
from voxray.runtimes.torch_head import without_head

STRIDE = many_classes().stride_vox


def module() -> nn.Module:
    made = many_classes().module
    assert made is not None
    return made


def test_logits_are_those_of_the_module() -> None:
    engine = open_runtime("torch", many_classes())
    assert isinstance(engine, TorchRuntime)
    assert engine.head is not None
    assert engine.features(some_patches()).features.shape == (2, 8, 16, 24, 16)
    with torch.inference_mode():
        assert furthest(engine(some_patches()), module()(some_patches())) < 1e-4


def test_the_module_stays_whole_and_its_weights_are_not_copied() -> None:
    before = copy.deepcopy(module()).state_dict()
    made, head = without_head(module(), STRIDE)
    assert head is not None
    assert head.weight.shape == (MANY + 1, 8)
    after = module().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    places = {tensor.data_ptr() for tensor in after.values()}
    assert all(tensor.data_ptr() in places for tensor in made.state_dict().values())


@pytest.mark.parametrize("kind", SMALL)
def test_a_head_that_gains_nothing_stays(kind: str) -> None:
    plain = exported(kind).module
    assert plain is not None
    made, head = without_head(plain, exported(kind).stride_vox)
    assert made is plain
    assert head is None


def test_a_scan_gets_the_labels_that_blended_logits_give() -> None:
    engine = open_runtime("torch", many_classes())
    found, expected = (answered(one) for one in (engine, Whole(engine)))
    assert len(np.unique(expected)) > MANY // 2
    assert (found == expected).mean() > 0.9999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_answers_alike(precision: str) -> None:
    engine = open_runtime("torch", many_classes(), device="cuda", precision=precision)  # type: ignore[arg-type]
    found, expected = (answered(one, device="cuda") for one in (engine, Whole(engine)))
    assert (found == expected).mean() > 0.999
