"""Studies: what is proposed, in which order, and that an interrupted one goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from voxray.core.config import Setting
from voxray.core.errors import ConfigError
from voxray.recipes import read_recipe
from voxray.sweeping.journal import Journal
from voxray.sweeping.optuna_study import BATCH, STARTUP, Evaluate, Plan, SweepStudy, TrialResult, key, next_greedy
from voxray.sweeping.search_space import Space, read_space

FIELDS = """
[fields]
"merge.tile_iou" = { low = 0.0, high = 0.6, grid = [0.1, 0.3, 0.5] }
"merge.score_floor" = { low = 0.02, high = 0.6, grid = [0.02, 0.2] }
"merge.method" = { choices = ["nms", "weighted_nms"] }
"""


def space_of(tmp_path: Path, text: str = FIELDS) -> Space:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return read_space(path, read_recipe("lung_nodule"))


def worth(setting: Setting) -> float:
    """Best at 0.3, 0.2 and weighted."""
    iou, floor = float(setting["merge.tile_iou"]), float(setting["merge.score_floor"])
    return float(1 - abs(iou - 0.3) - abs(floor - 0.2) + 0.1 * (setting["merge.method"] == "weighted_nms"))


def evaluator(seen: list[Setting], after: Callable[[], None] = lambda: None) -> Evaluate:
    def evaluate(settings: Sequence[Setting], bar: float | None) -> list[TrialResult]:
        after()
        seen.extend(settings)
        scores = [worth(setting) for setting in settings]
        return [TrialResult(score, score, pruned=bar is not None and score < bar) for score in scores]

    return evaluate


def study_of(tmp_path: Path, plan: Plan, *, name: str = "all", about: str = "x", text: str = FIELDS) -> SweepStudy:
    return SweepStudy(Journal(tmp_path / "study.journal"), name, space_of(tmp_path, text), plan, about=about)


def test_tpe_begins_with_the_recipes_own_setting_and_comes_near_the_best(tmp_path: Path) -> None:
    seen: list[Setting] = []
    study = study_of(tmp_path, Plan(trials=100))
    study.run(evaluator(seen))
    assert seen[0] == {"merge.tile_iou": 0.22, "merge.score_floor": 0.02, "merge.method": "nms"}
    best, second = study.best(2)
    assert best[1] == pytest.approx(max(map(worth, seen)))
    assert best[1] >= second[1] > 1.0
    assert best[1] > 1.04
    assert len(study.finished()) == len(seen) == 100


def test_tpe_goes_on_from_what_greedy_finds(tmp_path: Path) -> None:
    """A peak so narrow that only the grid's value is on it; and with few trials there is no time for a grid."""

    def peak(settings: Sequence[Setting], bar: float | None) -> list[TrialResult]:
        del bar
        return [TrialResult(worth(one) + 5 * (one["merge.tile_iou"] == 0.5)) for one in settings]

    study = study_of(tmp_path, Plan(trials=40))
    study.run(peak)
    assert study.best()[0][0]["merge.tile_iou"] == 0.5
    seen: list[Setting] = []
    study_of(tmp_path, Plan(trials=13), name="short").run(evaluator(seen))
    assert [setting["merge.tile_iou"] for setting in seen[:4]] != [0.22, 0.1, 0.3, 0.5]


def test_the_hopeless_are_given_up_early(tmp_path: Path) -> None:
    """A quarter of random settings is worse than three quarters of those before."""
    study = study_of(tmp_path, Plan(trials=160, sampler="random"))
    study.run(evaluator([]))
    pruned = [trial for trial in study.finished() if trial.state.name == "PRUNED"]
    assert 15 < len(pruned) < 60
    assert all(trial.number >= STARTUP for trial in pruned)
    assert len(study.best()) == 1


def test_equal_seeds_propose_equal_settings(tmp_path: Path) -> None:
    runs: list[list[Setting]] = [[], [], []]
    for number, (seen, seed) in enumerate(zip(runs, (1, 1, 2), strict=True)):
        study_of(tmp_path, Plan(trials=40, seed=seed), name=str(number)).run(evaluator(seen))
    assert runs[0] == runs[1] != runs[2]


def test_an_interrupted_study_goes_on_without_repeating_itself(tmp_path: Path) -> None:
    seen: list[Setting] = []
    calls = itertools.count()

    def stop() -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study_of(tmp_path, Plan(trials=60, sampler="random")).run(evaluator(seen, stop))
    assert len(seen) == 2 * BATCH
    again = study_of(tmp_path, Plan(trials=60, sampler="random"))
    assert len(again.finished()) == 2 * BATCH
    again.run(evaluator(seen))
    assert len(again.finished()) == len(seen) == 60
    assert len({key(setting) for setting in seen}) == 60
    more: list[Setting] = []
    study_of(tmp_path, Plan(trials=60, sampler="random")).run(evaluator(more))
    assert more == []


def test_greedy_goes_field_by_field_as_nndetection_does(tmp_path: Path) -> None:
    seen: list[Setting] = []
    study = study_of(tmp_path, Plan(trials=500, sampler="greedy"))
    study.run(evaluator(seen))
    assert [setting["merge.tile_iou"] for setting in seen[:3]] == [0.1, 0.3, 0.5]
    assert {setting["merge.tile_iou"] for setting in seen[3:]} == {0.3}
    assert seen[-1] == {"merge.tile_iou": 0.3, "merge.score_floor": 0.2, "merge.method": "weighted_nms"}
    assert len(seen) == 3 + 1 + 1  # what was tried as another field's value is not tried again
    ((best, _),) = study.best()
    assert best == seen[-1]
    assert next_greedy(study.space, {key(one): worth(one) for one in seen}) == []


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    seen: list[Setting] = []
    study_of(tmp_path, Plan(trials=500, sampler="grid")).run(evaluator(seen))
    assert len(seen) == len({key(setting) for setting in seen}) == 12
    part: list[Setting] = []
    study_of(tmp_path, Plan(trials=7, sampler="grid"), name="part").run(evaluator(part))
    assert len(part) == 7


def test_a_study_of_another_space_or_of_other_cases_is_refused(tmp_path: Path) -> None:
    study_of(tmp_path, Plan(trials=5)).run(evaluator([]))
    with pytest.raises(
        ConfigError,
        match=r"is of another network, other cases, scans or truth, or other IoUs \(fields merge.tile_iou, ",
    ):
        study_of(tmp_path, Plan(trials=5), about="y")
    other = FIELDS.replace("0.6", "0.55")
    with pytest.raises(ConfigError, match=r"is of another space .* sweep into another folder with --out"):
        study_of(tmp_path, Plan(trials=5), text=other)


def test_a_grid_that_would_never_end_is_refused(tmp_path: Path) -> None:
    values = "[" + ", ".join(f"0.{number:03d}" for number in range(100, 500)) + "]"
    text = FIELDS.replace("[0.1, 0.3, 0.5]", values).replace("[0.02, 0.2]", values)
    text += '"merge.min_size_mm" = { low = 0.0, high = 9.0, grid = [0.0, 1.0, 2.0, 3.0, 4.0] }\n'
    with pytest.raises(ConfigError, match="a grid of 1600000 combinations is too large"):
        study_of(tmp_path, Plan(trials=5, sampler="grid"), text=text).run(evaluator([]))
