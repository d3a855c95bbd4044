"""The layout that must hold: the source root shadows nothing, and every module is on a floor."""

from __future__ import annotations

import ast
import platform
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "platform"


def test_platform_is_the_standard_library() -> None:
    assert platform.__file__ is not None
    assert platform.__file__.endswith("platform.py")
    assert not (SOURCE / "__init__.py").exists()
    assert not (SOURCE / "platform.py").exists()


def test_every_module_has_a_floor() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = {name.strip() for layer in contracts[0]["layers"] for name in layer.replace(":", "|").split("|")}
    modules = {
        path.stem for path in (SOURCE / "voxray").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert modules - {"__init__", "__main__"} <= floors


@pytest.mark.parametrize("path", sorted((SOURCE / "voxray").rglob("*.py")), ids=lambda path: path.stem)
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500, f"{path.name} has more than 500 lines; split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.name}: {node.name} has {length} lines; split it"


def test_no_machine_path_in_the_tree() -> None:
    suffixes = {".py", ".toml", ".md", ".yaml", ".txt", ".sh"}
    for path in REPOSITORY.rglob("*"):
        parts = path.relative_to(REPOSITORY).parts
        if path.suffix in suffixes and path.is_file() and not any(part[0] == "." or part == "demo" for part in parts):
            text = path.read_text(errors="ignore")
            for prefix in ("/ho" + "me/", "/ro" + "ot/", "/wo" + "rk/"):
                assert prefix not in text, f"{path.relative_to(REPOSITORY)} names a place on one machine: {prefix}"
