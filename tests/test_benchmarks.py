"""`make benchmarks` runs every benchmark, and nothing that is none."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_make_runs_every_benchmark() -> None:
    listed = re.search(r"^BENCHMARKS := (.+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    programs = [
        path.stem for path in (REPOSITORY / "benchmarks").glob("*.py") if "import Row, options" in path.read_text()
    ]
    assert sorted(listed.group(1).split()) == sorted(programs)
