from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from support.box_references import all_boxes
from voxray.boxes.anchors import anchor_levels
from voxray.core.errors import ConfigError, DataError
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.recipes import published, read_recipe
from voxray.training.checkpoint import load_model, read_state
from voxray.training.weights import import_published, import_weights, read_weights_file

MakeRecipe = Callable[..., Recipe]


def _published_unet() -> nn.Module:
    """The network as MONAI's spleen bundle defines it."""
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm="batch",
    )


def _published_segresnet() -> nn.Module:
    """The network as MONAI's whole-body bundle defines it."""
    return SegResNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=105,
        init_filters=32,
        blocks_down=(1, 2, 2, 4),
        blocks_up=(1, 1, 1),
        dropout_prob=0.2,
    )


@pytest.fixture
def tiny(make_recipe: MakeRecipe) -> tuple[Recipe, dict[str, Tensor]]:
    recipe = make_recipe()
    return recipe, recipe.network.build(recipe, 1).state_dict()


def _import(path: Path, recipe: Recipe, output: Path) -> Run:
    return import_weights(path, recipe, ["blob"], output, dataset="toy", licence="CC0")


@pytest.mark.parametrize(("name", "build"), [("spleen", _published_unet), ("whole_body", _published_segresnet)])
def test_published_weights_become_a_run_that_answers_alike(
    name: str, build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    theirs = build().eval()
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    imported = import_published(tmp_path / "model.pt", name, tmp_path / "run")
    run, recipe, model = load_model(tmp_path / "run")
    assert run == imported
    assert run.classes == published(name).classes
    assert run.licence == published(name).licence
    assert recipe == read_recipe(name)
    assert read_state(tmp_path / "run").best == "epoch_0000"
    images = torch.randn((1, 1, 16, 16, 16))
    with torch.inference_mode():
        assert torch.equal(model(images).logits, theirs(images))


def test_the_published_detector_keeps_its_anchors_and_answers_in_edge_coordinates(tmp_path: Path) -> None:
    recipe = read_recipe("lung_nodule", published("lung_nodule").overrides)
    state = recipe.network.build(recipe, 1).state_dict()
    assert len(state) == 190
    torch.save({f"network.{key}": value for key, value in state.items()}, tmp_path / "model.pt")
    import_published(tmp_path / "model.pt", "lung_nodule", tmp_path / "run")
    _, imported, _ = load_model(tmp_path / "run")
    assert imported.anchors is not None
    (level, *_) = anchor_levels(imported.anchors, [(2, 2, 2)] * 3, [(4, 4, 2), (8, 8, 4), (16, 16, 8)])
    boxes = all_boxes([level])[:3]
    # MONAI's first anchors are centred on index (2, 2, 1); as edges that is half a voxel further up.
    torch.testing.assert_close((boxes[:, :3] + boxes[:, 3:]) / 2, torch.tensor([[2.5, 2.5, 1.5]]).expand(3, 3))
    assert (boxes[:, 3:] - boxes[:, :3]).tolist() == [[6, 8, 4], [8, 6, 4], [10, 10, 6]]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "optimizer": {"step": 3}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
    ],
    ids=["beside an optimizer", "data-parallel", "half precision"],
)
def test_known_wrappings_are_taken_off(wrap: Callable[[Any], Any], tiny: Any, tmp_path: Path) -> None:
    recipe, state = tiny
    torch.save(wrap(state), tmp_path / "model.pt")
    _import(tmp_path / "model.pt", recipe, tmp_path / "run")
    _, _, model = load_model(tmp_path / "run")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-3, atol=1e-4)


def test_safetensors_are_read_too(tiny: Any, tmp_path: Path) -> None:
    _, state = tiny
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    assert read_weights_file(tmp_path / "model.safetensors").keys() == state.keys()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s, k: s.pop(k), "{key} is missing"),
        (lambda s, _: s.update(extra=torch.zeros(1)), "extra is left over"),
        (lambda s, k: s.update({k: s[k][:1]}), "{key} has shape"),
        (lambda s, k: s[k].fill_(float("nan")), "{key} holds values that are not finite"),
    ],
)
def test_what_does_not_fit_is_named(spoil: Callable[..., Any], sentence: str, tiny: Any, tmp_path: Path) -> None:
    recipe, state = tiny
    key = next(key for key, value in state.items() if value.ndim == 5 and len(value) > 1)
    spoil(state, key)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(DataError) as caught:
        _import(tmp_path / "model.pt", recipe, tmp_path / "run")
    assert sentence.format(key=key) in str(caught.value)
    assert not (tmp_path / "run").exists()


class _Surprise:
    """An object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_code_in_a_weights_file_is_ever_run(tiny: Any, tmp_path: Path) -> None:
    recipe, state = tiny
    torch.save({**state, "surprise": _Surprise(tmp_path / "ran")}, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="runs no code from a weights file"):
        _import(tmp_path / "model.pt", recipe, tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_weights_are_refused_in_a_sentence(tiny: Any, tmp_path: Path) -> None:
    recipe, state = tiny
    torch.save(state, tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("half.pt", "text.pt", "text.safetensors"):
        with pytest.raises((DataError, ConfigError)) as caught:
            _import(tmp_path / name, recipe, tmp_path / "run")
        assert name in str(caught.value)
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    with pytest.raises(ConfigError, match=r"must hold a network's state dict.*got epoch: int"):
        _import(tmp_path / "numbers.pt", recipe, tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(1, 1), torch.zeros(1)).save(str(tmp_path / "model.ts"))  # type: ignore[no-untyped-call]
    with pytest.raises(ConfigError, match=r"model\.ts: is a TorchScript program"):
        _import(tmp_path / "model.ts", recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match="no such file"):
        _import(tmp_path / "nowhere.pt", recipe, tmp_path / "run")


def test_a_folder_with_a_run_is_never_overwritten(tiny: Any, tmp_path: Path) -> None:
    recipe, state = tiny
    torch.save(state, tmp_path / "model.pt")
    _import(tmp_path / "model.pt", recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        _import(tmp_path / "model.pt", recipe, tmp_path / "run")


def test_outputs_have_the_names_that_their_bundle_declares(tmp_path: Path) -> None:
    weights = tmp_path / "models" / "model.pt"
    weights.parent.mkdir()
    torch.save(_published_unet().state_dict(), weights)
    metadata = tmp_path / "configs" / "metadata.json"
    metadata.parent.mkdir()

    def declare(name: str) -> None:
        outputs = {"pred": {"channel_def": {"0": "background", "1": name}}}
        metadata.write_text(json.dumps({"network_data_format": {"outputs": outputs}}))

    declare("liver")
    with pytest.raises(
        ConfigError, match=r"calls output 1 'liver', the classes given 'spleen'; give --classes liver\."
    ):
        import_published(weights, "spleen", tmp_path / "run")
    declare("Spleen")
    assert import_published(weights, "spleen", tmp_path / "run").classes == ("spleen",)


def test_names_of_outputs_differ(tiny: Any, tmp_path: Path) -> None:
    recipe, weights = tiny
    torch.save(weights, tmp_path / "model.pt")
    for names in (["a", "a"], ["a", ""]):
        with pytest.raises(ConfigError, match="must be names that differ, in the order of the outputs"):
            import_weights(tmp_path / "model.pt", recipe, names, tmp_path / "run", dataset="toy", licence="CC0")


def test_imported_weights_want_a_new_folder(tmp_path: Path) -> None:
    weights = tmp_path / "models" / "model.pt"
    weights.parent.mkdir()
    torch.save({}, weights)
    with pytest.raises(ConfigError, match=r"such as model\.pt, and is no run that voxray made"):
        import_published(weights, "spleen", weights.parent)
    assert [path.name for path in weights.parent.iterdir()] == ["model.pt"]
