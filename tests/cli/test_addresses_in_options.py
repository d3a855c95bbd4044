"""Every path option of every verb, given an address: taken, or refused in a sentence; no folder is made of it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from voxray.cli.app import app

ADDRESSES = ("s3://voxray-no-such-bucket/place", "memory://somewhere/place")
TAKEN: dict[str, tuple[str, ...]] = {
    "check": ("dataset", "root"),
    "ingest": ("dataset", "root", "out"),
    "train": ("data", "out"),
    "predict": ("run", "out"),
    "export": ("run", "out"),
    "evaluate": ("answers", "truth", "root", "out", "json_file", "against", "dataset"),
    "sweep": ("runs", "root", "data", "out"),
    "report": ("runs", "root", "out"),
    "crossval": ("data", "out"),
    "consolidate": ("sources", "out", "setting"),
    "import-weights": ("weights", "out"),
}
"""Options that are given as text and may be addresses; what a verb cannot reach it says itself."""
MINIMAL: dict[str, list[str]] = {
    "info": ["scan"],
    "check": ["data.toml"],
    "toy": ["folder"],
    "ingest": ["data.toml", "spleen", "-o", "store"],
    "train": ["store", "spleen", "-o", "run"],
    "predict": ["run", "scan", "-o", "out"],
    "export": ["run", "-o", "out"],
    "evaluate": ["run"],
    "sweep": ["run", "space.toml"],
    "report": ["run"],
    "crossval": ["store", "spleen", "-o", "out"],
    "consolidate": ["run", "-o", "out"],
    "serve": ["model"],
    "token": ["list"],
    "import-weights": ["model.pt", "spleen", "-o", "run"],
    "demo": ["folder"],
}


def _is_path(hint: object) -> bool:
    return hint is Path or any(_is_path(one) for one in get_args(hint) if get_origin(hint) is not None)


def _paths(command: typer.models.CommandInfo) -> list[tuple[str, bool, tuple[str, ...]]]:
    """Name, whether it is an argument, and its flags, of every option that is a path."""
    assert command.callback is not None
    function = inspect.unwrap(command.callback)
    found = []
    for name, hint in get_type_hints(function, include_extras=True).items():
        if name == "return" or get_origin(hint) is None or not hasattr(hint, "__metadata__"):
            continue
        kind, about = get_args(hint)[0], hint.__metadata__[0]
        if _is_path(kind):
            declared = tuple(getattr(about, "param_decls", None) or ())
            flags = (*declared, f"--{name.replace('_', '-')}")
            found.append((name, isinstance(about, typer.models.ArgumentInfo), flags))
    return found


CASES = [
    (command.name or "", name, is_argument, flags)
    for command in app.registered_commands
    for name, is_argument, flags in _paths(command)
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a trap: a folder that an earlier version named after an address."""
    monkeypatch.chdir(tmp_path)
    for scheme in ("s3:", "memory:"):
        (tmp_path / scheme).mkdir()


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(("verb", "is_argument", "flags"), [(verb, *rest) for verb, _, *rest in CASES])
def test_a_path_that_must_be_on_this_machine_is_refused_in_a_sentence(
    tmp_path: Path, verb: str, is_argument: bool, flags: tuple[str, ...], address: str
) -> None:
    given = [text for text in MINIMAL[verb] if not text.startswith("-")] if is_argument else MINIMAL[verb]
    if is_argument:
        tail = MINIMAL[verb][len(given) - (1 if "-o" in MINIMAL[verb] else 0) :]
        places = given[: len(given) - (1 if "-o" in MINIMAL[verb] else 0)]
        arguments = [[*places[:at], address, *places[at + 1 :], *tail] for at in range(len(places))]
    else:
        flag = next(one for one in flags if one.startswith("--"))
        arguments = [[*given, flag, address]]
    refused = [CliRunner().invoke(app, [verb, *words]) for words in arguments]
    assert any(
        result.exit_code == 2 and f"{address}: is not on this machine" in result.stderr for result in refused
    ), [result.output + result.stderr for result in refused]
    assert all(list((tmp_path / scheme).iterdir()) == [] for scheme in ("s3:", "memory:"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory:", "s3:"]


def test_options_that_are_text_and_may_be_addresses_are_no_paths() -> None:
    known = {(verb, option) for verb, option, _, _ in CASES}
    for verb, options in TAKEN.items():
        command = next(one for one in app.registered_commands if one.name == verb)
        assert command.callback is not None
        hints = get_type_hints(inspect.unwrap(command.callback))
        for option in options:
            assert (verb, option) not in known
            assert str in (hints[option], *get_args(hints[option]))
