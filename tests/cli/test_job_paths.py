"""Which values of the verbs are places, by their own options; and which a job refuses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from voxray import cli
from voxray.cli.job_paths import PLACES, place_options, refuse_passwords, refuse_relative
from voxray.core.errors import ConfigError
from voxray.distributed.worker_code import JOB_CONFIG

Verb = Callable[..., None]
VERBS: dict[str, Any] = {str(command.name): command.callback for command in cli.app.registered_commands}
NO_PLACES = frozenset(
    (
        *("ARGS", "FIELD", "FORMS", "JOB", "MAX", "MIN", "N", "NAME", "NAMES", "ORIGIN"),
        *("TIME", "UID", "URL", "VALUE", "VERB"),
    )
) | set("XYZ")
"""Words of metavars that stand for something else."""


def parameters() -> Iterator[tuple[str, str, Any, Any]]:
    """(verb, parameter, type, what Typer knows of it) of every verb."""
    for name, verb in VERBS.items():
        for parameter in inspect.signature(verb, eval_str=True).parameters.values():
            base, *extras = get_args(parameter.annotation) or (parameter.annotation,)
            yield name, parameter.name, base, extras[0] if extras else None


def test_every_metavar_says_whether_it_is_a_place() -> None:
    for name, parameter, _, info in parameters():
        words = set(re.findall("[A-Z]+", getattr(info, "metavar", None) or ""))
        assert words <= PLACES | NO_PLACES, f"{name} {parameter}: sort {words - PLACES - NO_PLACES} into one of them"


def test_a_text_that_is_a_place_has_a_metavar_that_says_so() -> None:
    for name, parameter, base, info in parameters():
        if base in (str, str | None, list[str]) and not getattr(info, "metavar", None):
            text = str(getattr(info, "help", None) or "")
            assert not re.search(r"\b(folder|file|files|TRUTH)\b|\.json", text.partition(":")[0]), (
                f"{name} {parameter}: {text}"
            )


def test_places_are_found_among_paths_and_texts() -> None:
    assert {"data", "recipe_name", "out"} == place_options(VERBS["train"]).keys()
    assert {"run", "inputs", "out"} == place_options(VERBS["predict"]).keys()
    assert {"runs", "space", "dataset", "root", "data", "out"} == place_options(VERBS["sweep"]).keys()
    assert not place_options(VERBS["doctor"])


@pytest.mark.parametrize(
    ("verb", "values", "text"),
    [
        ("train", {"data": "store"}, "store"),
        ("train", {"data": "s3://b/store", "recipe_name": "mine.toml"}, "mine.toml"),
        ("train", {"data": "/store", "recipe_name": "spleen", "out": "./run"}, "./run"),
        ("predict", {"run": "/run", "inputs": [Path("/a"), Path("b.nii.gz")]}, "b.nii.gz"),
        ("serve", {"models": ["lung=/models/lung", "spleen=models/spleen"]}, "models/spleen"),
        ("evaluate", {"answers": "memory://r", "against": Path("old/evaluation.json")}, "old/evaluation.json"),
    ],
)
def test_a_relative_path_is_refused_with_what_to_do(verb: str, values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=r"is a relative path, and a job's folder .* s3://bucket/") as refused:
        refuse_relative(VERBS[verb], values, folder=None)
    assert str(refused.value).startswith(f"{text}: ")


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        (
            "train",
            {"data": "s3://b/store", "recipe_name": "lung_nodule", "out": "file:///shared/run", "set_": ["a=b"]},
        ),
        (
            "predict",
            {"run": "/run", "inputs": [Path("/scans")], "out": Path("/out"), "save": "preview", "series": None},
        ),
        ("serve", {"models": ["lung=s3://b/lung", "/models/spleen"], "folder": None, "runtime": "auto"}),
    ],
)
def test_addresses_full_paths_and_recipes_pass(verb: str, values: dict[str, Any]) -> None:
    refuse_relative(VERBS[verb], values, folder=None)


def test_a_file_that_came_with_the_job_passes_and_a_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "mine.toml").write_text("")
    refuse_relative(VERBS["sweep"], {"runs": ["/run"], "space": Path("spaces/mine.toml")}, folder=tmp_path)
    with pytest.raises(ConfigError, match="spaces: is a relative path"):
        refuse_relative(VERBS["sweep"], {"runs": ["spaces"], "space": Path("spaces/mine.toml")}, folder=tmp_path)


def test_a_verb_within_a_job_refuses_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB_CONFIG, "{}")
    result = CliRunner().invoke(cli.app, ["train", "s3://b/store", "spleen", "-o", "run"])
    assert result.exit_code == 2
    assert "voxray: run: is a relative path" in result.stderr


def test_a_password_is_refused_and_not_repeated() -> None:
    refuse_passwords(["-o", "s3://bucket/run", "https://host:8000/x@y", "user@host"])
    with pytest.raises(ConfigError, match=r"^postgresql://\.\.\.@db/voxray: holds a password") as refused:
        refuse_passwords(["serve", "--database", "postgresql://me:hunter2@db/voxray"])
    assert "hunter2" not in str(refused.value)
