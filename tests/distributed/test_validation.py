"""Validation while training gives the score that the task gives, however the cases are spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from support.tiny_training import ball_case, detection_recipe, made_store, segmentation_recipe
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.distributed.training import TrainOptions, new_run
from voxray.distributed.validation import PackedLabels, ValidatedCase, Validator
from voxray.inference.predictor import Predictor
from voxray.store import Store
from voxray.tasks import build_task
from voxray.training.collective import Collective


def _set_up(folder: Path, recipe: Recipe) -> tuple[Store, Run, nn.Module]:
    store = made_store(folder / "store", recipe)
    torch.manual_seed(0)
    return store, new_run(store, recipe, name="r", options=TrainOptions()), recipe.network.build(recipe, 1).eval()


@pytest.mark.parametrize("make", [segmentation_recipe, detection_recipe])
def test_the_score_is_the_tasks_own(tmp_path: Path, make: Any) -> None:
    recipe = make()
    store, run, model = _set_up(tmp_path, recipe)
    validator = Validator(store, run, recipe, case_ids=store.case_ids, collective=Collective())
    metrics = validator(model)
    cases = [store.read_case(case_id) for case_id in store.case_ids]
    predictor = Predictor(run, recipe, model)
    task = build_task(recipe, run.classes)
    expected = task.score([predictor.predict_grid(case) for case in cases], cases)
    assert metrics == pytest.approx(expected, nan_ok=True)
    assert task.primary_metric in metrics
    assert validator.picture is not None


@dataclass(frozen=True)
class Together:
    """Rank 0 of several that have all answered already."""

    rank: int
    world_size: int
    others: list[list[ValidatedCase]]
    device: torch.device

    def gather(self, item: Any) -> list[Any]:
        return [item, *self.others]


def test_cases_are_dealt_to_ranks_and_scored_together(tmp_path: Path) -> None:
    recipe = segmentation_recipe()
    store, run, model = _set_up(tmp_path, recipe)
    alone = Validator(store, run, recipe, case_ids=store.case_ids, collective=Collective())(model)
    seen: list[list[ValidatedCase]] = []

    @dataclass(frozen=True)
    class Listening:
        rank: int
        world_size: int
        device: torch.device

        def gather(self, item: list[ValidatedCase]) -> None:
            seen.append(item)

    device = torch.device("cpu")
    for rank in (1, 2):
        group: Any = Listening(rank, 3, device)
        assert Validator(store, run, recipe, case_ids=store.case_ids, collective=group)(model) == {}
    assert [[one.case_id for one in part] for part in seen] == [["case_1", "case_4"], ["case_2", "case_5"]]
    zero: Any = Together(0, 3, seen, device)
    assert Validator(store, run, recipe, case_ids=store.case_ids, collective=zero)(model) == alone


def test_a_network_that_gives_no_numbers_has_no_score(tmp_path: Path) -> None:
    recipe = detection_recipe()
    store, run, model = _set_up(tmp_path, recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    metrics = Validator(store, run, recipe, case_ids=store.case_ids[:1], collective=Collective())(model)
    assert math.isnan(metrics["mAP"])


def test_truth_travels_without_its_image() -> None:
    case = ball_case(0)
    assert case.labels is not None
    labels = PackedLabels(b"", case.image.grid).of(type(case.image)(case.labels, case.image.grid))
    item = ValidatedCase("a", "p", case.image.grid, labels, case.boxes, case.classes, labels)
    truth = item.truth()
    assert truth.labels is not None
    assert np.array_equal(truth.labels, case.labels)
    assert truth.image.grid == case.image.grid
    assert len(labels.payload) < 3000
