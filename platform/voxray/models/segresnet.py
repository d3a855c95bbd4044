"""SegResNet (Myronenko 2018, without the autoencoder branch), as the published whole-body weights have it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from voxray.core.outputs import SegmentationOutput
from voxray.core.recipe import NetworkConfig, Recipe

NORM_GROUPS = 8


class SegResNetConfig(NetworkConfig):
    """A residual encoder with group norm and a light decoder; each step down halves all three axes."""

    kind: Literal["segresnet"] = "segresnet"
    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)
    init_filters: Annotated[int, Field(gt=0, multiple_of=NORM_GROUPS)] = 32
    """Channels of the first level; they double with each step down."""
    blocks_down: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (1, 2, 2, 4)
    """Residual blocks of each level of the encoder."""
    blocks_up: tuple[PositiveInt, ...] = (1, 1, 1)
    """Residual blocks of each step up."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The share of channels dropped after the first convolution."""

    @model_validator(mode="after")
    def _one_step_up_per_step_down(self) -> SegResNetConfig:
        if len(self.blocks_up) != len(self.blocks_down) - 1:
            raise ValueError(
                f"blocks_up must have one entry less than blocks_down, got {len(self.blocks_up)} "
                f"and {len(self.blocks_down)}"
            )
        return self

    @property
    def stride_vox(self) -> tuple[int, int, int]:
        """Two to the number of steps down."""
        step = 2 ** (len(self.blocks_down) - 1)
        return step, step, step

    def build(self, recipe: Recipe, num_classes: int) -> SegResNet:
        """The untrained network for `num_classes` foreground classes and background."""
        del recipe
        return SegResNet(self, num_classes + 1)


class SegResNet(nn.Module):
    """Logits of the patch's own size.

    The parameters' names are those of MONAI's SegResNet, whose blocks these are, so its weights load as they are.
    """

    def __init__(self, config: SegResNetConfig, num_outputs: int) -> None:
        from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet

        super().__init__()
        blocks: Any = MonaiSegResNet(
            spatial_dims=3,
            init_filters=config.init_filters,
            in_channels=1,
            out_channels=num_outputs,
            dropout_prob=config.dropout,
            blocks_down=config.blocks_down,
            blocks_up=config.blocks_up,
        )
        self.convInit: nn.Module = blocks.convInit
        self.dropout = nn.Dropout3d(config.dropout)
        self.down_layers: nn.ModuleList = blocks.down_layers
        self.up_samples: nn.ModuleList = blocks.up_samples
        self.up_layers: nn.ModuleList = blocks.up_layers
        self.conv_final: nn.Module = blocks.conv_final

    def forward(self, images: Float[Tensor, "b 1 x y z"]) -> SegmentationOutput:
        """One logit per class and voxel; sides must be multiples of the configuration's `stride_vox`."""
        x = self.dropout(self.convInit(images))
        skips = []
        for down in self.down_layers:
            x = down(x)
            skips.append(x)
        skips.pop()
        for up, layers in zip(self.up_samples, self.up_layers, strict=True):
            x = layers(up(x) + skips.pop())
        return SegmentationOutput(self.conv_final(x))
