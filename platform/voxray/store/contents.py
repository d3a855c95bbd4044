"""What a store's cases are made of, as digests: by them a training knows the data that it began on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from voxray.core.text import first_few
from voxray.store.manifest import CaseEntry, Manifest

_CASE_DIGITS, _DIGITS = 16, 32


@dataclass(frozen=True)
class Contents:
    """A digest of each case: of what its shard was made from, and of the shard's files."""

    cases: Mapping[str, str]

    @staticmethod
    def of(manifest: Manifest) -> Contents:
        """Those of a store; where it lies means nothing."""
        return Contents({case_id: _digest(entry) for case_id, entry in sorted(manifest.cases.items())})

    @property
    def digest(self) -> str:
        """Of all cases."""
        return hashlib.sha256(json.dumps(self.cases, sort_keys=True).encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Changes:
    """Cases by which two stores differ, in ascending order of their ids."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @staticmethod
    def between(before: Mapping[str, str], now: Mapping[str, str]) -> Changes:
        """What has happened to the cases since."""
        return Changes(
            added=tuple(sorted(set(now) - set(before))),
            removed=tuple(sorted(set(before) - set(now))),
            changed=tuple(sorted(case for case in set(before) & set(now) if before[case] != now[case])),
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        parts = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        return ", ".join(f"{counted(cases)} {what} ({first_few(cases, 5)})" for what, cases in parts if cases)


def counted(cases: tuple[str, ...]) -> str:
    """``1 case``, ``4 cases``."""
    return number_of_cases(len(cases))


def number_of_cases(number: int) -> str:
    """The same of a number."""
    return f"{number} case{'s' * (number != 1)}"


def _digest(entry: CaseEntry) -> str:
    parts = [entry.signature, *(file.sha256 for file in entry.files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_CASE_DIGITS]
