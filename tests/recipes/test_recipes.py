from __future__ import annotations

import tomllib
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest

from voxray.core.config import Config, read_mapping, to_full_toml, to_json, to_toml
from voxray.core.errors import ConfigError
from voxray.core.recipe import Recipe, SegmentationLoss, WindowIntensity, parse_recipe
from voxray.dataset import read_dataset
from voxray.models import MODELS
from voxray.models.segresnet import SegResNetConfig
from voxray.models.unet import UNetConfig
from voxray.recipes import RECIPES, published, read_recipe

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


def test_the_three_published_recipes_are_there() -> None:
    assert set(RECIPES) >= {"lung_nodule", "spleen", "whole_body"}
    assert {name: read_recipe(name).name for name in RECIPES} == {name: name for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("write", "suffix"), [(to_toml, ".toml"), (to_full_toml, ".toml"), (to_json, ".json")])
def test_every_recipe_survives_the_way_through_a_file(name: str, write: object, suffix: str, tmp_path: Path) -> None:
    assert callable(write)
    recipe = read_recipe(name)
    path = tmp_path / f"copy{suffix}"
    path.write_text(write(recipe), encoding="utf-8")
    assert read_recipe(str(path)) == recipe
    assert parse_recipe(read_mapping(path), MODELS, where="copy").network == recipe.network


@pytest.mark.parametrize("name", RECIPES)
def test_the_full_text_has_every_field(name: str) -> None:
    def names(config: Config) -> set[str]:
        inner = [getattr(config, field) for field in type(config).model_fields]
        return set(type(config).model_fields).union(*(names(one) for one in inner if isinstance(one, Config)))

    recipe = read_recipe(name)
    text = to_full_toml(recipe)
    lines = [line.lstrip("# ") for line in text.splitlines()]
    for field in names(recipe):
        assert any(line.startswith(f"{field} = ") or f"{field}]" in line.split("#")[0] for line in lines), field
    assert "# clip_norm = ...  # unset; a number > 0. The gradient's norm is cut to this" in text
    written = text.replace("# clip_norm = ...", "clip_norm = 1.5")
    changed = parse_recipe(tomllib.loads(written), MODELS, where="changed")
    assert changed.model_copy(update={"optim": recipe.optim}) == recipe
    assert changed.optim.clip_norm == 1.5


def test_every_optional_field_of_a_recipe_is_none_by_default() -> None:
    """TOML has no null: a None that is not the default would come back as the default."""

    def groups(kind: type[Config]) -> set[type[Config]]:
        parts = [part for field in kind.model_fields.values() for part in _parts(field.annotation)]
        inner = [part for part in parts if isinstance(part, type) and issubclass(part, Config)]
        return {kind}.union(*(groups(part) for part in inner))

    for kind in groups(Recipe) | set(MODELS.values()):
        for name, field in kind.model_fields.items():
            if NoneType in get_args(field.annotation):
                assert field.default is None, f"{kind.__name__}.{name}"


def _parts(annotation: object) -> list[object]:
    return [annotation, *(inner for part in get_args(annotation) for inner in _parts(part))]


def test_spleen_is_the_published_recipe() -> None:
    recipe = read_recipe("spleen")
    assert recipe.network == UNetConfig(channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
    assert recipe.intensity == WindowIntensity(low_hu=-57, high_hu=164)
    assert recipe.grid.spacing_mm == (1.5, 1.5, 2.0)
    assert recipe.loss == SegmentationLoss(dice_weight=0.5, ce_weight=0.5, squared=True, batch_dice=True)
    assert (recipe.optim.optimizer, recipe.optim.rate, recipe.optim.batch_size) == ("novograd", 0.002, 8)
    assert (recipe.inference.window_vox, recipe.inference.overlap) == ((96, 96, 96), 0.5)


def test_whole_body_is_the_published_recipe() -> None:
    recipe = read_recipe("whole_body")
    assert recipe.network == SegResNetConfig(init_filters=32, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
    assert recipe.intensity.kind == "zscore_minmax"
    assert recipe.loss == SegmentationLoss()
    assert recipe.augment.flip_p == 0
    assert (recipe.inference.blend, recipe.inference.padding) == ("gaussian", "replicate")


def test_overrides_reach_nested_and_typed_fields() -> None:
    overrides = [
        "optim.rate=0.005",
        "patch.size_vox=[64, 64, 32]",
        "loss.squared=false",
        "optim.amp=off",
        "grid.spacing_mm=[3,3,3]",
        'intensity={kind="zscore_minmax"}',
        "name=my spleen",
    ]
    recipe = read_recipe("spleen", overrides)
    assert recipe.optim.rate == 0.005
    assert recipe.patch.size_vox == (64, 64, 32)
    assert isinstance(recipe.loss, SegmentationLoss)
    assert recipe.loss.squared is False
    assert recipe.optim.amp == "off"
    assert recipe.grid.spacing_mm == (3.0, 3.0, 3.0)
    assert recipe.intensity.kind == "zscore_minmax"
    assert recipe.name == "my spleen"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.rat=1", "spleen with --set: optim.rat: no such field; did you mean 'rate'?"),
        ("network.chanels=[1]", "spleen with --set: network.chanels: no such field; did you mean 'channels'?"),
        ("loss.smoth=1", "spleen with --set: loss.smoth: no such field; did you mean 'smooth'?"),
        ("optim.epochs=0", "spleen with --set: optim.epochs: must be greater than 0, got 0"),
        ("optim.amp=fp8", "spleen with --set: optim.amp: must be 'off', 'bf16' or 'fp16', got 'fp8'"),
        ("patch=1", "spleen with --set: patch: must be a group of fields, got 1"),
        ("loss.kind=focal", "spleen with --set: loss: kind must be one of 'detection', 'segmentation', got 'focal'"),
        ("network.kind=resnet", "network: kind must be one of retinanet, segresnet, unet, got 'resnet'"),
        ("network.strides=[2,2]", "network: strides must have one entry less than channels, got 2 and 5"),
        (
            "patch.size_vox=[90,96,96]",
            "spleen with --set: patch.size_vox must be a multiple of the network's stride (16, 16, 16), "
            "got (90, 96, 96)",
        ),
        ("optim.rate", "--set optim.rate: must have the form field.subfield=value."),
        ("optim.rate.x=1", "--set optim.rate.x=1: 'rate' is a value, not a group of fields."),
    ],
)
def test_a_wrong_override_is_refused_in_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe("spleen", [override])
    assert str(caught.value).endswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_network_of_another_task_is_refused() -> None:
    network = 'network={kind="unet"}'
    with pytest.raises(ConfigError, match=r"network\.kind unet is for segmentation, but loss\.kind is detection"):
        read_recipe("lung_nodule", [network])


def test_an_unknown_recipe_lists_those_that_are() -> None:
    with pytest.raises(
        ConfigError, match=r"'splen': no such recipe; did you mean 'spleen'\? allowed are .*whole_body"
    ):
        read_recipe("splen")
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        read_recipe("nowhere.toml")


@pytest.mark.parametrize("name", ["lung_nodule", "spleen", "whole_body"])
def test_published_classes_are_those_of_the_dataset_file(name: str) -> None:
    weights = published(name)
    dataset = read_dataset(DATASETS / f"{weights.dataset}.toml", root=Path())
    assert weights.classes == dataset.classes
    assert read_recipe(name, weights.overrides).task == ("detection" if name == "lung_nodule" else "segmentation")


def test_a_recipe_without_published_weights_says_which_have() -> None:
    with pytest.raises(ConfigError, match="lung_nodule, spleen, whole_body have"):
        published("toy")
