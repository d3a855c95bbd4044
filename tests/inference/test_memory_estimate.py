"""The memory estimate: against what stitching really holds, and as a sentence with settings that fit."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from voxray.core.errors import ResourceError
from voxray.core.recipe import Recipe
from voxray.core.volume import Shape
from voxray.inference.memory_estimate import Computed, _held_bytes, answer_bytes, free_bytes, require_memory
from voxray.recipes import read_recipe
from voxray.tasks.stitch import _Carry, blocks
from voxray.windows import windows_over

CPU = torch.device("cpu")
GIB = 2**30


@pytest.mark.parametrize("shape", [(40, 72, 56), (96, 48, 48), (32, 32, 40)])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("accumulate", ["fp32", "fp16"])
def test_what_waits_for_later_windows_is_as_much_as_is_held(
    shape: Shape, overlap: float, accumulate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(
        "spleen",
        ["inference.window_vox=[32,32,32]", f"inference.overlap={overlap}", f"inference.accumulate={accumulate}"],
    )
    places, held = windows_over(shape, recipe), dict[int, Tensor]()
    kept = _Carry._at

    def watched(self: _Carry, place: Shape, part: Tensor, length: int) -> Tensor:
        found = kept(self, place, part, length)
        assert self._held is not None
        held[id(self)] = self._held
        return found

    monkeypatch.setattr(_Carry, "_at", watched)
    windows = ((place, torch.ones(2, *places.window)) for place in places.places)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[accumulate]
    for _ in blocks(windows, places, blend="constant", accumulate=dtype):
        pass
    window = 2 * 4 * places.window[0] * places.window[1] * places.window[2]
    real = window + sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    assert real <= _held_bytes(recipe, 2, places) <= 1.35 * real


def test_it_grows_with_scan_window_batch_and_precision() -> None:
    recipe = read_recipe("spleen", ["inference.window_vox=[64,64,64]", "inference.batch_size=1"])

    def needed(one: Recipe, side: int = 128, *, half: bool = False) -> int:
        return answer_bytes(one, 1, scan=(side,) * 3, image=(side,) * 3, how=Computed(half))

    assert needed(recipe, 256) > needed(recipe, 128)
    assert needed(read_recipe("spleen", ["inference.window_vox=[96,96,96]", "inference.batch_size=1"])) > needed(
        recipe
    )
    assert needed(read_recipe("spleen", ["inference.window_vox=[64,64,64]", "inference.batch_size=4"])) > needed(
        recipe
    )
    assert needed(recipe, half=True) < needed(recipe)
    assert answer_bytes(recipe, 1, scan=(128,) * 3, image=(128,) * 3, on_device=True) < needed(recipe)


def test_features_before_a_head_take_less_than_logits() -> None:
    """Measured for 168 x 144 x 128 voxels in 105 classes with OpenVINO: 2.2 GiB with logits, 1.3 GiB without."""
    recipe, shape = read_recipe("whole_body", ["inference.window_vox=[96,96,96]"]), (168, 144, 128)
    logits, features = (
        answer_bytes(recipe, 104, scan=shape, image=shape, how=Computed(features=channels)) / GIB
        for channels in (None, 32)
    )
    assert 2.2 < logits < 3.0
    assert 1.3 < features < 1.8


@pytest.mark.parametrize("name", ["spleen", "whole_body", "lung_nodule"])
def test_the_settings_of_the_sentence_fit(name: str) -> None:
    recipe, num_classes = read_recipe(name), 104 if name == "whole_body" else 1
    scan = image = (300, 300, 300)
    most = answer_bytes(recipe, num_classes, scan=scan, image=image)
    with pytest.raises(ResourceError, match=r"300 x 300 x 300 .* GiB .* would fit\.$") as caught:
        require_memory(recipe, num_classes, scan=scan, image=image, device=CPU, free=most // 2)
    changed = read_recipe(name, re.findall(r"--set (\S+)", str(caught.value)))
    assert answer_bytes(changed, num_classes, scan=scan, image=image) <= most // 2
    require_memory(changed, num_classes, scan=scan, image=image, device=CPU, free=most // 2)


def test_where_nothing_fits_the_sentence_says_so() -> None:
    with pytest.raises(ResourceError, match="no setting would make it fit: use a machine with more"):
        require_memory(read_recipe("spleen"), 1, scan=(900,) * 3, image=(900,) * 3, device=CPU, free=1 << 20)


def test_this_machine_has_some_memory_free() -> None:
    assert 64 << 20 < free_bytes(CPU) < 1 << 50
