"""RetinaNet (Lin 2017) on a residual network with a feature pyramid, as the published nodule weights have it.

Backbone blocks and pyramid are MONAI's; the parameters' names are those of MONAI's RetinaNet, so its weights load as
they are. The heads are our own because MONAI's look for NaN after every map, which makes the device wait and ends a
run that a loss scaler would have saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from voxray.core.outputs import DetectionOutput
from voxray.core.recipe import NetworkConfig, Recipe, SizeVox

if TYPE_CHECKING:
    from monai.networks.nets.resnet import ResNet

_BACKBONES: dict[str, tuple[str, list[int]]] = {
    "resnet10": ("basic", [1, 1, 1, 1]),
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
}
_HEAD_DEPTH = 4
_PRIOR = 0.01
"""What an untrained network answers for every anchor (Lin 2017, section 4.1)."""


class RetinaNetConfig(NetworkConfig):
    """A RetinaNet: a map for each of the backbone's `returned_layers`, and one more at half the last resolution."""

    kind: Literal["retinanet"] = "retinanet"
    tasks: ClassVar[tuple[str, ...]] = ("detection",)
    backbone: Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    width: PositiveInt = 64
    """Channels of the backbone's first convolution; they double with each layer."""
    stem_kernel: SizeVox = (7, 7, 7)
    stem_stride: SizeVox = (2, 2, 1)
    """Stride of the first convolution; a pooling by 2 on every axis follows it."""
    returned_layers: Annotated[tuple[Literal[1, 2, 3, 4], ...], Field(min_length=1)] = (1, 2)
    channels: PositiveInt = 256
    """Channels of the pyramid and the heads: a multiple of `norm_groups`."""
    norm_groups: PositiveInt = 8
    """Groups of the heads' group norm."""

    @model_validator(mode="after")
    def _sound(self) -> RetinaNetConfig:
        if self.channels % self.norm_groups:
            raise ValueError(f"channels must be a multiple of norm_groups {self.norm_groups}, got {self.channels}")
        if list(self.returned_layers) != sorted(set(self.returned_layers)):
            raise ValueError(f"returned_layers must rise without repeating, got {self.returned_layers}")
        if any(side % 2 == 0 for side in self.stem_kernel):
            raise ValueError(f"stem_kernel must be odd on every axis, got {self.stem_kernel}")
        return self

    @property
    def level_strides_vox(self) -> tuple[tuple[int, int, int], ...]:
        """The stride of each output map in voxels, finest first."""
        factors = [2**layer for layer in self.returned_layers]
        return tuple(_scaled(self.stem_stride, factor) for factor in [*factors, 2 * factors[-1]])

    @property
    def stride_vox(self) -> tuple[int, int, int]:
        """The stride of the coarsest map."""
        return self.level_strides_vox[-1]

    def build(self, recipe: Recipe, num_classes: int) -> RetinaNet:
        """The untrained network for `num_classes` classes and the recipe's anchors."""
        assert recipe.anchors is not None
        return RetinaNet(self, num_anchors=len(recipe.anchors.base_shapes_vox), num_classes=num_classes)


class RetinaNet(nn.Module):
    """Class logits and box deltas for every anchor; sides must be multiples of the configuration's `stride_vox`."""

    def __init__(self, config: RetinaNetConfig, *, num_anchors: int, num_classes: int) -> None:
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        self.feature_extractor = PyramidFeatures(config)
        self.classification_head = ClassificationHead(channels, groups, num_outputs=num_anchors * num_classes)
        self.regression_head = RegressionHead(channels, groups, num_outputs=num_anchors * 6)

    def forward(self, images: Float[Tensor, "b 1 x y z"]) -> DetectionOutput:
        """The maps of every level, finest first."""
        levels = self.feature_extractor(images)
        return DetectionOutput(
            class_logits=tuple(self.classification_head(level) for level in levels),
            box_deltas=tuple(self.regression_head(level) for level in levels),
        )


class PyramidFeatures(nn.Module):
    """The backbone up to its last returned layer and a feature pyramid (Lin 2017a) on the returned ones."""

    def __init__(self, config: RetinaNetConfig) -> None:
        from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
        from monai.networks.nets.resnet import ResNet

        super().__init__()
        block, depths = _BACKBONES[config.backbone]
        backbone = ResNet(
            block=block,
            layers=depths,
            block_inplanes=[config.width * 2**level for level in range(4)],
            spatial_dims=3,
            n_input_channels=1,
            conv1_t_size=config.stem_kernel,  # type: ignore[arg-type]
            conv1_t_stride=config.stem_stride,  # type: ignore[arg-type]
            feed_forward=False,
        )
        expansion = 4 if block == "bottleneck" else 1
        self.body = Backbone(backbone, config.returned_layers)
        self.fpn = FeaturePyramidNetwork(
            spatial_dims=3,
            in_channels_list=[config.width * 2 ** (layer - 1) * expansion for layer in config.returned_layers],
            out_channels=config.channels,
            extra_blocks=LastLevelMaxPool(3),
        )

    def forward(self, images: Float[Tensor, "b 1 x y z"]) -> list[Float[Tensor, "b c x y z"]]:
        """The pyramid's maps, finest first."""
        return list(self.fpn(self.body(images)).values())


class Backbone(nn.Module):
    """The stem and layers of a residual network, without what comes after the last returned layer."""

    def __init__(self, resnet: ResNet, returned_layers: Sequence[int]) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act, self.maxpool = resnet.conv1, resnet.bn1, resnet.act, resnet.maxpool
        self.names = [f"layer{layer}" for layer in range(1, max(returned_layers) + 1)]
        self.returned = [f"layer{layer}" for layer in returned_layers]
        for name in self.names:
            self.add_module(name, resnet.get_submodule(name))

    def forward(self, images: Float[Tensor, "b 1 x y z"]) -> dict[str, Float[Tensor, "b c x y z"]]:
        """The returned layers' maps by name, finest first."""
        features = self.maxpool(self.act(self.bn1(self.conv1(images))))
        found: dict[str, Tensor] = {}
        for name in self.names:
            features = self.get_submodule(name)(features)
            if name in self.returned:
                found[name] = features
        return found


class ClassificationHead(nn.Module):
    """Class logits of every anchor at every place; one head serves all levels."""

    def __init__(self, channels: int, groups: int, *, num_outputs: int) -> None:
        super().__init__()
        self.conv = _tower(channels, groups)
        self.cls_logits = _convolution(channels, num_outputs, bias=-math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, features: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b ac x y z"]:
        """The logits, anchor-major."""
        logits: Tensor = self.cls_logits(self.conv(features))
        return logits


class RegressionHead(nn.Module):
    """Box deltas of every anchor at every place; one head serves all levels."""

    def __init__(self, channels: int, groups: int, *, num_outputs: int) -> None:
        super().__init__()
        self.conv = _tower(channels, groups)
        self.bbox_reg = _convolution(channels, num_outputs)

    def forward(self, features: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b a6 x y z"]:
        """The deltas, anchor-major."""
        deltas: Tensor = self.bbox_reg(self.conv(features))
        return deltas


def _tower(channels: int, groups: int) -> nn.Sequential:
    """Convolutions that start at He's standard deviation (He 2015, equation 10).

    At the published 256 channels that is 0.017, close to the 0.01 of Lin 2017. With few channels 0.01 is far too
    small: before a normalisation only a weight's direction counts, and steps of Adam as large as the weight turn it
    at random. A head of 24 channels then learns nothing for hundreds of steps.
    """
    layers: list[nn.Module] = []
    for _ in range(_HEAD_DEPTH):
        spread = math.sqrt(2 / (27 * channels))
        layers += [_convolution(channels, channels, spread=spread), nn.GroupNorm(groups, channels), nn.ReLU()]
    return nn.Sequential(*layers)


def _convolution(channels: int, outputs: int, *, bias: float = 0.0, spread: float = 0.01) -> nn.Conv3d:
    """A 3x3x3 convolution that starts as noise of that standard deviation (Lin 2017, section 4.1)."""
    convolution = nn.Conv3d(channels, outputs, kernel_size=3, padding=1)
    assert convolution.bias is not None
    with torch.no_grad():
        nn.init.normal_(convolution.weight, std=spread)
        nn.init.constant_(convolution.bias, bias)
    return convolution


def _scaled(stride: tuple[int, int, int], factor: int) -> tuple[int, int, int]:
    x, y, z = stride
    return x * factor, y * factor, z * factor
