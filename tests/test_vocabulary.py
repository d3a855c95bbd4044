"""One word, one thing: no two public classes or type aliases of the package share a name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "platform" / "voxray"


def top_level(node: ast.AST) -> Iterator[ast.stmt]:
    """What a module does as it is imported, also under an `if` or `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from top_level(child)


def named(node: ast.stmt) -> Iterator[str]:
    """The names of classes and type aliases that a statement defines: capitalised, other than constants."""
    match node:
        case ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name) and _is_a_type(target.id))
        case ast.AnnAssign(target=ast.Name(id=name)) if _is_a_type(name):
            yield name
        case _ if type(node).__name__ == "TypeAlias":  # `type X = ...`, from Python 3.12 on
            yield node.name.id  # type: ignore[attr-defined]


def _is_a_type(name: str) -> bool:
    return name[:1].isupper() and not name.isupper()


def defined_twice(sources: dict[str, str]) -> dict[str, list[str]]:
    """Public names that stand for several things, with every place that defines them as `path:line`."""
    places: dict[str, list[str]] = {}
    for path, text in sources.items():
        lines = {name: node.lineno for node in top_level(ast.parse(text)) for name in named(node)}
        for name, line in lines.items():
            if not name.startswith("_"):
                places.setdefault(name, []).append(f"{path}:{line}")
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


def test_a_public_name_stands_for_one_thing() -> None:
    sources = {str(path.relative_to(REPOSITORY)): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}
    found = "\n".join(f"  {name}: {', '.join(places)}" for name, places in defined_twice(sources).items())
    assert not found, (
        f"one name for different things (rename one, or begin it with _ where no other module asks):\n{found}"
    )


@pytest.mark.parametrize(
    "text",
    [
        "class Box: ...",
        "Box = tuple[float, ...]",
        "Box: TypeAlias = tuple[float, ...]",
        'Box = NewType("Box", int)',
        "Box = Annotated[int, 3]",
        "if TYPE_CHECKING:\n    Box = int\nelse:\n    Box = object",
    ],
)
def test_every_way_to_name_a_type_is_seen(text: str) -> None:
    assert "Box" in defined_twice({"a.py": "class Box: ...", "b.py": text})


@pytest.mark.parametrize(
    "text", ["class _Box: ...", "BOX = 3", "box = 3", "from a import Box", "def f():\n    Box = int"]
)
def test_what_no_other_module_asks_for_is_free(text: str) -> None:
    assert not defined_twice({"a.py": "class Box: ...\nclass _Box: ...\nBOX = 1", "b.py": text})
