"""`make benchmarks` runs every benchmark, and nothing that is none."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def test_make_runs_every_benchmark() -> None:
    listed = re.search(r"^BENCHMARKS := (.+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    programs = [
        path.stem for path in (REPOSITORY / "benchmarks").glob("*.py") if "import Row, options" in path.read_text()
    ]
    assert sorted(listed.group(1).split()) == sorted(programs)


def test_what_is_said_of_a_hundred_machines_is_what_the_unit_costs_come_to() -> None:
    scaling = runpy.run_path(str(REPOSITORY / "benchmarks" / "scaling.py"))
    assert scaling["table"]() in (REPOSITORY / "benchmarks" / "SCALING.md").read_text()
    estimate, units = scaling["estimate"], scaling["Units"]()
    work = replace(scaling["LUNA16"], trainings=1, most_batch=10_000)
    few, many = estimate(work, 8), estimate(work, 64)
    patches = 300 * 799 * 4
    assert few.hours == pytest.approx(patches * 3 * 3561e9 / units.flops / 8 / 3600)
    assert (few.hours, few.node_hours) == pytest.approx((8 * many.hours, many.node_hours))
    assert few.gradient_mb_s == 0
    assert many.requests_s == pytest.approx(8 * few.requests_s)
    assert estimate(replace(work, most_batch=64), 512).used_gpus == 16
