"""Which device answers."""

from __future__ import annotations

import pytest
import torch

from voxray.core.errors import ConfigError, ResourceError
from voxray.runtimes.device import choose_device


def test_auto_takes_what_is_there() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


def test_names_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match="'abacus': no such device; use auto, cpu, cuda or cuda:N"):
        choose_device("abacus")
    with pytest.raises(ResourceError, match="CUDA devices; use cpu"):
        choose_device("cuda:99")
