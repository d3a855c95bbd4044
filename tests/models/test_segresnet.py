from __future__ import annotations

import pytest
import torch
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet

from voxray.core.config import parse
from voxray.core.errors import ConfigError
from voxray.models.segresnet import SegResNet, SegResNetConfig


@pytest.mark.parametrize("training", [False, True])
def test_names_and_answers_are_monais(training: bool) -> None:
    """In training too: dropout falls on the same channels."""
    theirs = MonaiSegResNet(
        init_filters=8, out_channels=3, dropout_prob=0.5, blocks_down=(1, 2, 1), blocks_up=(1, 2)
    ).train(training)
    ours = SegResNet(SegResNetConfig(init_filters=8, blocks_down=(1, 2, 1), blocks_up=(1, 2), dropout=0.5), 3)
    ours.load_state_dict(theirs.state_dict())
    ours.train(training)
    images = torch.randn((2, 1, 8, 12, 4), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.manual_seed(2)
        mine = ours(images).logits
        torch.manual_seed(2)
        assert torch.equal(mine, theirs(images))


def test_the_published_network_halves_three_times() -> None:
    assert SegResNetConfig().stride_vox == (8, 8, 8)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"blocks_up": [1]}, "blocks_up must have one entry less than blocks_down, got 1 and 4"),
        ({"init_filters": 12}, "init_filters: must be a multiple of 8"),
        ({"dropout": -0.1}, "dropout: must be greater than or equal to 0"),
    ],
)
def test_impossible_networks_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(SegResNetConfig, fields, where="network")
    assert sentence in str(caught.value)
