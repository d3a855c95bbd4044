"""A local place is its own working copy, by the name that it was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxray.core.errors import ConfigError
from voxray.core.working_copy import local_file, working_copy


@pytest.mark.parametrize("given", ["run/model.pt", Path("run/model.pt"), "/run/model.pt", "run/absent"])
def test_what_is_here_keeps_its_name(given: str | Path) -> None:
    with local_file(given) as file, working_copy(given) as folder:
        assert str(file) == str(folder) == str(given)


def test_an_address_that_was_made_a_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="give it as text, s3://bucket/run"), working_copy(Path("s3://bucket/run")):
        pass
