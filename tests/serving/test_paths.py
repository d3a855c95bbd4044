"""The service's folder is its own: what it removes there, nobody else put there."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxray.core.errors import ConfigError
from voxray.serving.jobs.store import new_id
from voxray.serving.paths import ServicePaths


def test_a_new_folder_and_one_of_before_are_the_services(tmp_path: Path) -> None:
    places = ServicePaths(tmp_path / "service")
    places.require_own()
    places.prepared().require_own()
    places.study(new_id()).mkdir()
    places.job(new_id()).mkdir()
    (places.root / "notes.txt").touch()
    places.require_own()


@pytest.mark.parametrize("name", ["service.db", "config.json", "serve.log"])
def test_a_folder_with_a_token_or_a_configuration_is_the_services(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    ServicePaths(tmp_path).require_own()


@pytest.mark.parametrize("name", ["studies/patient_7/ct.nii.gz", "jobs/mine.txt"])
def test_somebody_elses_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"give .*folder"):
        ServicePaths(tmp_path).require_own()
    assert path.read_text() == "mine"


def test_a_models_folder_is_refused_and_so_is_one_within(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "link").symlink_to(model)
    for root in (model, model / "service", tmp_path / "link" / "service"):
        with pytest.raises(ConfigError, match="the folder of a model, which is read"):
            ServicePaths(root).require_own([model])
