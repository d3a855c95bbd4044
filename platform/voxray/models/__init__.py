"""The networks. A new one is one file with a config class and an `nn.Module`, and one line here.

MONAI is imported where a network is built: it brings all that it can find, which takes seconds, and most of what
reads a recipe builds none.
"""

from __future__ import annotations

from collections.abc import Mapping

from voxray.core.recipe import NetworkConfig
from voxray.models.retinanet import RetinaNetConfig
from voxray.models.segresnet import SegResNetConfig
from voxray.models.unet import UNetConfig

MODELS: Mapping[str, type[NetworkConfig]] = {
    "retinanet": RetinaNetConfig,
    "segresnet": SegResNetConfig,
    "unet": UNetConfig,
}
