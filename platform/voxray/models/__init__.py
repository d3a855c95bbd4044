"""The networks. A new one is one file with a config class and an `nn.Module`, and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from voxray.models.retinanet import RetinaNetConfig
from voxray.models.segresnet import SegResNetConfig
from voxray.models.unet import UNetConfig
from voxray.recipe import NetworkConfig

MODELS: Mapping[str, type[NetworkConfig]] = {
    "retinanet": RetinaNetConfig,
    "segresnet": SegResNetConfig,
    "unet": UNetConfig,
}
