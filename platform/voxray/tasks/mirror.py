"""Mirrored patients: which classes change places when left becomes right."""

from __future__ import annotations

from collections.abc import Sequence


def swapped_sides(classes: Sequence[str]) -> list[int]:
    """For each class the one that stands for it in a mirrored patient: ``kidney_left`` for ``kidney_right``.

    Pairs are told by the words ``left`` and ``right`` between underscores; a class without a partner stays itself.
    """
    index = {name: number for number, name in enumerate(classes)}
    return [index.get(_other_side(name), number) for number, name in enumerate(classes)]


def _other_side(name: str) -> str:
    other = {"left": "right", "right": "left"}
    return "_".join(other.get(word, word) for word in name.split("_"))
