"""Cross-validation in this process: folds that go on, answers pooled, partial sets, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from support.balls import RECIPE, Teller, store_of, told, weights_of, write_balls
from support.tiny_training import segmentation_recipe
from voxray.commands.consolidate import consolidate
from voxray.commands.crossval import CrossvalOptions, CrossvalReport, chosen_folds, crossval
from voxray.commands.out_of_fold import held_out
from voxray.core.answer_json import LabelsFile, read_file
from voxray.core.errors import ConfigError
from voxray.core.evaluation import read_evaluation, write_evaluation
from voxray.core.progress import SilentProgress
from voxray.dataset.folds import Folds, Holdout, KFold, Lists, Luna16Subsets, NoFolds
from voxray.inference.trained_model import open_model
from voxray.readers import read_label_map
from voxray.training.checkpoint import read_run
from voxray.training.crossval_folder import finished_folds, read_crossval

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy

HERE = CrossvalOptions(workers=0)
CASES = [f"case_{index}" for index in range(4)]


@pytest.fixture(scope="module", autouse=True)
def _calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scans and a store of them."""
    folder = tmp_path_factory.mktemp("data")
    store_of(write_balls(folder / "balls"), folder / "store")
    return folder


@pytest.fixture(scope="module")
def half(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation that was stopped when its second fold began."""
    output = tmp_path_factory.mktemp("half") / "cv"
    with pytest.raises(KeyboardInterrupt):
        crossval(data / "store", RECIPE, output, HERE, progress=Teller(lambda line: line.startswith("fold 1")))
    return output


@pytest.fixture(scope="module")
def done(data: Path, half: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CrossvalReport, Teller]:
    """The same command again."""
    output, teller = Path(shutil.copytree(half, tmp_path_factory.mktemp("done") / "cv")), Teller()
    return output, crossval(data / "store", RECIPE, output, HERE, progress=teller), teller


def test_what_was_stopped_goes_on_with_the_folds_that_are_left(
    half: Path, done: tuple[Path, CrossvalReport, Teller]
) -> None:
    output, report, teller = done
    assert finished_folds(half) == (0,)
    assert told(teller.lines, "fold 0") == []
    assert len(told(teller.lines, "fold 1")) == 1
    assert weights_of(output / "fold_0") == weights_of(half / "fold_0")
    assert (finished_folds(output), report.unfinished, report.evaluation.notices) == ((0, 1), (), ())


def test_every_case_is_answered_once_by_the_run_that_never_saw_it(
    done: tuple[Path, CrossvalReport, Teller],
) -> None:
    output, report, _ = done
    runs = {run.name: run for run in (read_run(output / f"fold_{fold}") for fold in range(2))}
    assert set(runs) == {"cv fold 0", "cv fold 1"}
    assert sorted(path.stem for path in (output / "answers").glob("*.json")) == CASES
    for case in CASES:
        answer = read_file(LabelsFile, output / "answers" / f"{case}.json")
        assert case in runs[answer.model.run].val_cases
        assert case not in runs[answer.model.run].train_cases
    assert sorted(case for one in report.folds.values() for case in one.cases) == CASES


def test_the_pooled_score_is_that_of_all_answers(data: Path, done: tuple[Path, CrossvalReport, Teller]) -> None:
    output, report, _ = done
    by_hand = []
    for case in CASES:
        found = read_label_map(output / "answers" / f"{case}.nii.gz").voxels == 1
        truth = read_label_map(data / "balls" / "labels" / f"{case}.nii.gz").voxels == 1
        by_hand.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert report.evaluation.metrics["dice"] == pytest.approx(np.mean(by_hand))
    assert 0 < report.evaluation.metrics["dice"] < 1
    assert report.evaluation.which == "val"
    assert read_evaluation(output).model_dump_json() == report.evaluation.model_dump_json()
    alone = read_evaluation(output / "fold_1" / "evaluation")
    assert alone.metrics["dice"] == pytest.approx(
        np.mean([report.evaluation.cases[case]["ball"] for case in alone.cases])
    )
    assert report.rows()[-1][:2] == ("pooled", "4")


def test_a_partial_set_can_be_scored_and_consolidated(data: Path, half: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(half, tmp_path / "cv"))
    report = crossval(
        data / "store", RECIPE, output, CrossvalOptions(workers=0, only=(0,)), progress=SilentProgress()
    )
    assert (list(report.folds), report.unfinished, len(report.evaluation.cases)) == ([0], (1,), 2)
    assert report.evaluation.notices == ("without fold 1, which has not been trained to its end",)
    made = consolidate([output], tmp_path / "model", progress=SilentProgress())
    assert made.members == (f"{output}/fold_0",)
    assert made.left_out == {"fold 1": "has trained 0 of 2 epochs"}
    assert len(open_model(tmp_path / "model").networks) == 1


def test_the_folds_make_one_package_whose_card_says_what_they_scored(
    done: tuple[Path, CrossvalReport, Teller], tmp_path: Path
) -> None:
    output, report, _ = done
    made = consolidate([output], tmp_path / "model", progress=SilentProgress())
    assert (len(made.members), made.left_out) == (2, {})
    engine = open_model(tmp_path / "model")
    assert (engine.run.name, len(engine.networks)) == ("cv", 2)
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"| dice | {report.evaluation.metrics['dice']:.3f} |" in card
    assert "cv fold 1" in card


def test_a_score_of_other_networks_is_not_on_the_card(
    done: tuple[Path, CrossvalReport, Teller], tmp_path: Path
) -> None:
    output = Path(shutil.copytree(done[0], tmp_path / "cv"))
    score = read_evaluation(output)
    assert len(set(score.weights_sha256)) == 2
    write_evaluation(score.model_copy(update={"weights_sha256": ("0", "1")}), output / "evaluation.json")
    teller = Teller()
    consolidate([output], tmp_path / "model", progress=teller)
    assert told(teller.lines, f"{output}/evaluation.json: is no score of these networks")
    assert "| dice |" not in (tmp_path / "model" / "README.md").read_text()


def test_folds_of_other_data_are_refused_before_any_trains(data: Path, half: Path, tmp_path: Path) -> None:
    more = store_of(data / "balls" / "dataset.toml", tmp_path / "store", count=5)
    output = Path(shutil.copytree(half, tmp_path / "cv"))
    with pytest.raises(ConfigError, match=r"fold_0: was trained .* other data .* 1 case added \(case_4\)"):
        crossval(more.uri, RECIPE, output, HERE, progress=SilentProgress())
    accepting = CrossvalOptions(workers=0, only=(0,), accept_changed_data=True)
    teller = Teller(lambda line: "stays so" in line)
    with pytest.raises(KeyboardInterrupt):
        crossval(more.uri, RECIPE, output, accepting, progress=teller)
    assert told(teller.lines, f"fold 0: {output}/fold_0: finished its training on other data")


def test_cases_that_the_folds_do_not_know_are_named(
    data: Path, done: tuple[Path, CrossvalReport, Teller], tmp_path: Path
) -> None:
    output, store = (
        Path(shutil.copytree(done[0], tmp_path / "cv")),
        Path(shutil.copytree(data / "store", tmp_path / "s")),
    )
    for fold in range(2):
        path = output / f"fold_{fold}" / "run.json"
        fields = json.loads(path.read_text())
        fields["val_cases"] = [case for case in fields["val_cases"] if case != "case_2"]
        path.write_text(json.dumps(fields))
    report = crossval(store, RECIPE, output, HERE, progress=SilentProgress())
    (notice,) = report.evaluation.notices
    assert notice == "without case_2, added to the store after their fold was begun"
    assert "case_2" not in report.evaluation.cases
    manifest = json.loads((store / "manifest.json").read_text())
    entry = manifest["cases"].pop("case_2")
    manifest["failed"]["case_2"] = {"code": "x", "message": "y", **{k: entry[k] for k in ("patient_id", "image")}}
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"1 case removed \(case_2\)"):
        crossval(store, RECIPE, output, HERE, progress=SilentProgress())
    accepting = CrossvalOptions(workers=0, accept_changed_data=True)
    for options in (accepting, HERE):  # accepted once, it is not asked for again
        report = crossval(store, RECIPE, output, options, progress=SilentProgress())
        assert report.evaluation.notices == ("without case_2, set aside when the store was made",)


def test_a_folder_holds_one_cross_validation(data: Path, half: Path, tmp_path: Path) -> None:
    output, store = Path(shutil.copytree(half, tmp_path / "cv")), data / "store"
    record = read_crossval(output)
    assert (record.dataset, record.num_folds, record.scored, record.seed) == ("balls", 2, "val", 0)

    def again(recipe: object = RECIPE, **options: int) -> None:
        crossval(store, recipe, output, CrossvalOptions(workers=0, **options), progress=SilentProgress())  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=r'folds .*"num_folds": 2.* but .*"num_folds": 4.* give another folder'):
        again(num_folds=4)
    with pytest.raises(ConfigError, match="the seed 0, but 3 was asked for"):
        again(seed=3)
    with pytest.raises(ConfigError, match=r"another recipe: optim.epochs = \d+, but 9 was asked for; give another"):
        again(segmentation_recipe("optim.epochs=9", "inference.window_vox=[32,32,32]"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (CrossvalOptions(workers=0, num_folds=5), "5 folds need as many patients, there are 4"),
        (CrossvalOptions(workers=0, num_folds=1), "--folds 1: a cross-validation has 2 folds or more"),
        (CrossvalOptions(workers=0, only=(0, 2)), "--only 2: there are the folds 0 to 1"),
        (CrossvalOptions(workers=0, at_once=2), "--at-once 2: needs workers of its own"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, options: CrossvalOptions, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        crossval(data / "store", RECIPE, tmp_path / "cv", options, progress=SilentProgress())
    assert not (tmp_path / "cv").exists()


def test_a_number_of_folds_takes_the_place_of_random_folds_alone(tmp_path: Path) -> None:
    assert chosen_folds(KFold(seed=3, test_share=0.2), 4) == KFold(num_folds=4, seed=3, test_share=0.2)
    assert chosen_folds(NoFolds(), 3) == KFold(num_folds=3)
    assert chosen_folds(Holdout(test_share=0.2), None) == Holdout(test_share=0.2)
    assert chosen_folds(Luna16Subsets(), 10) == Luna16Subsets()
    (tmp_path / "s.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    others: list[tuple[Folds, int]] = [
        (Luna16Subsets(), 5),
        (Holdout(), 5),
        (Lists(file=str(tmp_path / "s.json")), 2),
    ]
    for own, wanted in others:
        with pytest.raises(
            ConfigError, match=rf"--folds {wanted}: the dataset's own folds, of kind '{own.kind}', are"
        ):
            chosen_folds(own, wanted)
    with pytest.raises(ConfigError, match=r"folds\.kind 'none' has no folds; give their number with --folds K"):
        chosen_folds(NoFolds(), None)


def test_a_test_set_that_a_run_has_seen_is_not_scored(data: Path, half: Path) -> None:
    from voxray.dataset import read_dataset
    from voxray.loading import list_cases

    dataset, run = read_dataset(data / "balls" / "dataset.toml"), read_run(half / "fold_0")
    sources = list_cases(dataset)
    rule = KFold(num_folds=4, rotating_test=True)
    with pytest.raises(ConfigError, match=r"its cases or folds have changed: case case_\d now tests fold 0"):
        held_out(run, dataset, sources, rule, scored="test")
    blank = run.model_copy(update={"train_cases": (), "val_cases": ()})
    assert len(held_out(blank, dataset, sources, rule, scored="test")) == 1


def test_a_folder_without_a_cross_validation_or_a_finished_fold_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cross-validation here"):
        read_crossval(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        crossval(
            data / "store", RECIPE, tmp_path / "cv", HERE, progress=Teller(lambda line: line.startswith("fold 0"))
        )
    with pytest.raises(ConfigError, match="no fold has finished its training"):
        consolidate([tmp_path / "cv"], tmp_path / "model", progress=SilentProgress())
    assert not (tmp_path / "model").exists()
