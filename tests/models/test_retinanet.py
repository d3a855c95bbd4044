"""RetinaNet: the published names and shapes, MONAI's numbers, and what its configuration refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet as MonaiRetinaNet
from monai.networks.blocks.backbone_fpn_utils import BackboneWithFPN
from monai.networks.nets import resnet
from torch import nn

from voxray.core.errors import ConfigError
from voxray.core.outputs import DetectionOutput
from voxray.core.recipe import parse_recipe
from voxray.models import MODELS
from voxray.models.retinanet import RetinaNet, RetinaNetConfig
from voxray.recipes import read_recipe

TINY = RetinaNetConfig(backbone="resnet10", width=8, channels=8, norm_groups=2)


def tiny(*, num_anchors: int = 3, num_classes: int = 2) -> RetinaNet:
    torch.manual_seed(3)
    return RetinaNet(TINY, num_anchors=num_anchors, num_classes=num_classes)


@pytest.fixture(scope="module")
def published() -> RetinaNet:
    """The network of the published weights, untrained."""
    model = read_recipe("lung_nodule").network.build(read_recipe("lung_nodule"), 1)
    assert isinstance(model, RetinaNet)
    return model


class ReturnedLayers(nn.ModuleDict):
    """What MONAI takes from torchvision: a network's children up to the last wanted one, whose results it returns."""

    def __init__(self, model: nn.Module, return_layers: dict[str, str]) -> None:
        children = dict(model.named_children())
        last = max(list(children).index(name) for name in return_layers)
        super().__init__(dict(itertools.islice(children.items(), last + 1)))
        self.return_layers = return_layers

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for name, child in self.items():
            x = child(x)
            if name in self.return_layers:
                found[self.return_layers[name]] = x
        return found


class Stub:
    """Stands in for ``torchvision.models``, which MONAI's pyramid takes one class from."""

    class _utils:  # noqa: N801
        IntermediateLayerGetter = ReturnedLayers


def monai_published(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """MONAI's own network as the bundle builds it; torchvision's class, the only one it needs here, is replaced."""
    monkeypatch.setattr("monai.networks.blocks.backbone_fpn_utils.torchvision_models", Stub)
    backbone = resnet.resnet50(spatial_dims=3, n_input_channels=1, conv1_t_stride=[2, 2, 1], conv1_t_size=[7, 7, 7])
    layers = {"layer1": "0", "layer2": "1"}
    features = BackboneWithFPN(backbone, layers, [256, 512], 256, spatial_dims=3)
    return MonaiRetinaNet(
        spatial_dims=3, num_classes=1, num_anchors=3, feature_extractor=features, size_divisible=[16, 16, 8]
    )


def test_published_parameters(published: RetinaNet) -> None:
    """20,902,741 parameters in 190 entries, by groups as in the published file."""
    names = list(published.state_dict())
    groups = {
        prefix: sum(name.startswith(f"{prefix}.") for name in names)
        for prefix in (
            "feature_extractor.body.conv1",
            "feature_extractor.body.bn1",
            "feature_extractor.body.layer1",
            "feature_extractor.body.layer2",
            "feature_extractor.fpn",
            "classification_head",
            "regression_head",
        )
    }
    assert list(groups.values()) == [1, 5, 61, 79, 8, 18, 18]
    assert len(names) == 190
    assert sum(parameter.numel() for parameter in published.parameters()) == 20_902_741
    assert sum(buffer.numel() for buffer in published.buffers()) == 10_136


def test_same_numbers_as_monai(published: RetinaNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one set of weights (in the order of MONAI's own names) both networks give the same maps."""
    monai = monai_published(monkeypatch)
    assert list(published.state_dict()) == list(monai.state_dict())
    rng = torch.Generator().manual_seed(1)
    weights = {name: _shaken(name, value, rng) for name, value in monai.state_dict().items()}
    published.load_state_dict(weights)
    monai.load_state_dict(weights)
    published.eval()
    monai.eval()
    images = torch.rand((1, 1, 32, 48, 16), generator=rng)
    with torch.no_grad():
        ours, theirs = published(images), monai(images)
    for mine, other in zip(ours.class_logits, theirs["classification"], strict=True):
        assert mine.abs().max() > 1
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    for mine, other in zip(ours.box_deltas, theirs["box_regression"], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def _shaken(name: str, value: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Weights away from their start, so that an exchanged layer shows; running variances stay positive."""
    if not value.is_floating_point():
        return value
    if name.endswith("running_var"):
        return value + torch.rand(value.shape, generator=rng)
    return value + 0.02 * torch.randn(value.shape, generator=rng)


@pytest.mark.parametrize("window", [(64, 64, 32), (32, 48, 16), (16, 16, 8)])
def test_shapes(window: tuple[int, int, int]) -> None:
    output = tiny()(torch.rand(2, 1, *window))
    assert isinstance(output, DetectionOutput)
    for logits, deltas, stride in zip(output.class_logits, output.box_deltas, TINY.level_strides_vox, strict=True):
        shape = tuple(side // step for side, step in zip(window, stride, strict=True))
        assert logits.shape == (2, 6, *shape)
        assert deltas.shape == (2, 18, *shape)


def test_strides() -> None:
    assert RetinaNetConfig().level_strides_vox == ((4, 4, 2), (8, 8, 4), (16, 16, 8))
    assert RetinaNetConfig().stride_vox == (16, 16, 8)
    deeper = RetinaNetConfig(stem_stride=(1, 1, 1), returned_layers=(1, 2, 3))
    assert deeper.level_strides_vox == ((2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16))


def test_untrained_network_expects_few_objects() -> None:
    """The prior of one in a hundred (Lin 2017, section 4.1)."""
    output = tiny()(torch.rand(1, 1, 32, 32, 16))
    scores = torch.cat([level.sigmoid().flatten() for level in output.class_logits])
    assert scores.mean().item() == pytest.approx(0.01, rel=0.05)


def test_values_that_are_not_numbers_pass_through() -> None:
    """No check inside the network: a loss scaler must get to see them."""
    output = tiny()(torch.full((1, 1, 16, 16, 8), torch.nan))
    assert all(torch.isnan(level).all() for level in output.class_logits)


def test_exports_for_other_sizes_than_the_sample() -> None:
    model = tiny().eval()
    dynamic = torch.export.Dim.DYNAMIC
    sample = torch.rand(2, 1, 32, 32, 16)
    program = torch.export.export(
        model, (sample,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic, 4: dynamic},), strict=False
    )
    images = torch.rand(1, 1, 48, 64, 24)
    with torch.no_grad():
        for mine, other in zip(model(images).box_deltas, program.module()(images).box_deltas, strict=True):
            torch.testing.assert_close(mine, other)


def test_every_backbone_builds() -> None:
    for backbone, names in (("resnet18", 2), ("resnet34", 2), ("resnet50", 3)):
        config = RetinaNetConfig.model_validate(
            {**TINY.model_dump(), "backbone": backbone, "returned_layers": [2, 3]}
        )
        model = RetinaNet(config, num_anchors=1, num_classes=1)
        assert sum(name.endswith("layer1.0.conv1.weight") for name in model.state_dict()) == 1
        assert sum("layer1.0.conv" in name for name in model.state_dict()) == names
        assert [tuple(m.shape[2:]) for m in model(torch.rand(1, 1, 64, 64, 32)).class_logits] == [
            (8, 8, 8),
            (4, 4, 4),
            (2, 2, 2),
        ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"network": {"channels": 20}}, "channels must be a multiple of norm_groups 8, got 20"),
        ({"network": {"returned_layers": [2, 1]}}, "returned_layers must rise without repeating"),
        ({"network": {"stem_kernel": [7, 6, 7]}}, "stem_kernel must be odd on every axis"),
        ({"network": {"backbone": "vgg"}}, "network"),
        ({"network": {"returned_layers": [1, 2, 3]}}, "must have one entry for each of 4 levels, got 3"),
        (
            {"anchors": {"level_scales": [1, 2]}},
            "anchors.level_scales must have one entry for each of 3 levels, got 2",
        ),
    ],
)
def test_refused(change: dict[str, dict[str, Any]], sentence: str) -> None:
    data = read_recipe("lung_nodule").model_dump(mode="json")
    for field, values in change.items():
        data[field] |= values
    with pytest.raises(ConfigError, match=sentence):
        parse_recipe(data, MODELS, where="test")
