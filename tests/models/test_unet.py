from __future__ import annotations

import pytest
import torch
from monai.networks.nets.unet import UNet as MonaiUNet

from voxray.core.config import parse
from voxray.core.errors import ConfigError
from voxray.models.unet import UNet, UNetConfig


def test_names_and_answers_are_monais() -> None:
    torch.manual_seed(0)
    theirs = MonaiUNet(3, 1, 3, channels=(4, 8, 16), strides=(2, 2), num_res_units=2, norm="batch").eval()
    ours = UNet(UNetConfig(channels=(4, 8, 16), strides=(2, 2)), 3).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn((1, 1, 16, 12, 8))
    with torch.inference_mode():
        assert torch.equal(ours(images).logits, theirs(images))


def test_steps_may_differ_by_axis() -> None:
    config = UNetConfig(channels=(4, 8, 8), strides=((2, 2, 1), 2))
    assert config.stride_vox == (4, 4, 2)
    assert UNet(config, 2)(torch.zeros((2, 1, 8, 8, 6))).logits.shape == (2, 2, 8, 8, 6)


def test_the_published_network_halves_four_times() -> None:
    assert UNetConfig().stride_vox == (16, 16, 16)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"strides": [2, 2]}, "one entry less than channels, got 2 and 5"),
        ({"channels": [4], "strides": []}, "channels: Tuple should have at least 2 items"),
        ({"dropout": 1.0}, "dropout: must be less than 1"),
        ({"norm": "layer"}, "norm: must be 'batch' or 'instance'"),
    ],
)
def test_impossible_networks_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(UNetConfig, fields, where="network")
    assert sentence in str(caught.value)
