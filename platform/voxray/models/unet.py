"""UNet (Ronneberger 2015) with residual units, as the published spleen weights have it; built from MONAI's blocks."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from voxray.core.outputs import SegmentationOutput
from voxray.core.recipe import NetworkConfig, Recipe, SizeVox


class UNetConfig(NetworkConfig):
    """A UNet: one entry of `channels` for each level, one stride for each step down."""

    kind: Literal["unet"] = "unet"
    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (16, 32, 64, 128, 256)
    strides: tuple[PositiveInt | SizeVox, ...] = (2, 2, 2, 2)
    """One number for all axes, or three numbers for x, y and z where voxels are anisotropic."""
    num_res_units: NonNegativeInt = 2
    norm: Literal["batch", "instance"] = "batch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _one_stride_per_step(self) -> UNetConfig:
        if len(self.strides) != len(self.channels) - 1:
            raise ValueError(
                f"strides must have one entry less than channels, got {len(self.strides)} and {len(self.channels)}"
            )
        return self

    @property
    def stride_vox(self) -> tuple[int, int, int]:
        """The product of all strides, per axis."""
        steps = [(step, step, step) if isinstance(step, int) else step for step in self.strides]
        x, y, z = (math.prod(axis) for axis in zip(*steps, strict=True))
        return x, y, z

    @property
    def local(self) -> bool:
        """Batch norm's statistics are fixed once trained; an instance norm's are the window's."""
        return self.norm == "batch"

    def build(self, recipe: Recipe, num_classes: int) -> UNet:
        """The untrained network for `num_classes` foreground classes and background."""
        del recipe
        return UNet(self, num_classes + 1)


class UNet(nn.Module):
    """Logits of the patch's own size.

    The parameters' names are those of MONAI's UNet, whose blocks these are, so its weights load as they are.
    """

    def __init__(self, config: UNetConfig, num_outputs: int) -> None:
        from monai.networks.nets.unet import UNet as MonaiUNet

        super().__init__()
        self.model = MonaiUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=num_outputs,
            channels=config.channels,
            strides=config.strides,  # type: ignore[arg-type]
            num_res_units=config.num_res_units,
            norm=config.norm,
            dropout=config.dropout,
        ).model

    def forward(self, images: Float[Tensor, "b 1 x y z"]) -> SegmentationOutput:
        """One logit per class and voxel; sides must be multiples of the configuration's `stride_vox`."""
        return SegmentationOutput(self.model(images))
