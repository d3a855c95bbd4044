"""The data of a run: recorded, compared, and changed only where that is accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from support.tiny_training import DATASET, ball_case, made_store, segmentation_recipe, without_ball
from voxray.core.case import Case
from voxray.core.errors import ConfigError
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.distributed.training import TrainOptions, new_run
from voxray.store import Contents, Store, write_case, write_manifest
from voxray.training.checkpoint import Checkpoint, read_run, write_checkpoint
from voxray.training.data import Planned, changed_since, claim_run, plan_run

RECIPE = segmentation_recipe()


def store_of(folder: Path, cases: list[Case]) -> Store:
    """A store of these cases, with signatures that say nothing."""
    place = Place.of(folder)
    stored = [write_case(place, case, RECIPE, original_grid=case.image.grid, signature="s") for case in cases]
    write_manifest(place, stored, RECIPE, dataset=DATASET, failed={})
    return Store.open(folder)


def balls(count: int = 6) -> list[Case]:
    """So many cases of a patient each."""
    return [ball_case(index) for index in range(count)]


def wanted(store: Store) -> Run:
    """What the same command asks for."""
    return new_run(store, RECIPE, name="run", options=TrainOptions())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two epochs out of three on six balls."""
    folder, store = tmp_path / "run", store_of(tmp_path / "store", balls())
    claimed = claim_run(folder, plan_run(folder, wanted(store), store))
    write_checkpoint(folder, Checkpoint(run=claimed, weights={}, epochs_done=2))
    return folder


def planned(run: Path, cases: list[Case], *, accept: bool = False) -> Planned:
    """The plan of the same command on a store that was made of other cases."""
    store = store_of(run.parent / "remade", cases)
    return plan_run(run, wanted(store), store, accept=accept)


def test_a_run_names_its_data(run: Path) -> None:
    store = Store.open(run.parent / "store")
    (version,) = read_run(run).data
    assert (version.digest, version.num_cases, version.after_epoch) == (Contents.of(store.manifest).digest, 6, 0)
    known = json.loads((run / "data" / f"{version.digest}.json").read_text())["cases"]
    assert known == Contents.of(store.manifest).cases


def test_the_same_content_elsewhere_goes_on(run: Path) -> None:
    found = planned(run, balls())
    assert (found.run, found.remarks) == (read_run(run), ())


def test_a_changed_case_is_refused_by_name(run: Path) -> None:
    cases = balls()
    cases[2] = without_ball(cases[2])
    with pytest.raises(ConfigError, match=r"2 of its 3 epochs .*: 1 case changed \(case_2\)") as error:
        planned(run, cases)
    assert "--accept-changed-data" in str(error.value)
    assert "\n" not in str(error.value)


def test_added_and_removed_cases_are_counted_and_named(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 cases added \(case_6, case_7\), 1 case removed \(case_0\)"):
        planned(run, balls(8)[1:])


def test_accepted_changes_are_recorded_with_the_epoch(run: Path) -> None:
    cases = balls()
    cases[2] = without_ball(cases[2])
    found = planned(run, cases, accept=True)
    assert "goes on after epoch 2 with changed data: 1 case changed (case_2)" in found.remarks[0]
    claimed = claim_run(run, found)
    assert read_run(run) == claimed
    first, second = claimed.data
    assert (second.after_epoch, second.changes, first.changes) == (2, "1 case changed (case_2)", "")
    assert first.digest != second.digest
    assert planned(run, cases).run == claimed


def test_a_case_that_trained_never_validates(run: Path) -> None:
    """One more patient deals the folds anew; what the network has seen stays where it was."""
    before, cases = read_run(run), [*balls()[1:], ball_case(6), replace(ball_case(7), patient_id="case_1")]
    store = store_of(run.parent / "other", cases)
    assert not set(wanted(store).val_cases) <= {*before.val_cases, "case_6", "case_7"}
    after = planned(run, cases, accept=True).run
    assert set(after.val_cases) - {"case_6", "case_7"} == set(before.val_cases) - {"case_0"}
    assert set(after.train_cases) - {"case_6", "case_7"} == set(before.train_cases) - {"case_0"}
    assert ("case_7" in after.train_cases) == ("case_1" in before.train_cases)
    assert {*after.train_cases, *after.val_cases} == set(store.case_ids)
    claim_run(run, planned(run, cases, accept=True))
    assert planned(run, cases).run == read_run(run)


def test_the_same_data_split_otherwise_is_refused_even_so(run: Path) -> None:
    store = Store.open(run.parent / "store")
    other = made_store(run.parent / "other", RECIPE, folds={"kind": "kfold", "num_folds": 3, "seed": 5})
    with pytest.raises(ConfigError, match=r"fold 0 is another: \d cases? changed sides .*case_\d "):
        plan_run(run, wanted(other), store, accept=True)


def test_a_finished_run_does_not_pass_for_one_of_the_new_data(run: Path) -> None:
    write_checkpoint(run, Checkpoint(run=read_run(run), weights={}, epochs_done=3, finished=True))
    with pytest.raises(ConfigError, match=r"1 case removed \(case_5\); train into another folder"):
        planned(run, balls(5))
    found = planned(run, balls(5), accept=True)
    assert "stays so" in found.remarks[0]
    assert claim_run(run, found).data == read_run(run).data
    assert len(read_run(run).data) == 1
    again = planned(run, balls(5))  # accepted once, for these data
    assert again.remarks == found.remarks
    assert claim_run(run, again) == read_run(run)
    with pytest.raises(ConfigError, match=r"2 cases removed \(case_4, case_5\)"):
        planned(run, balls(4))


def test_a_run_of_an_earlier_version_is_taken_up_and_recorded(run: Path) -> None:
    old = read_run(run).model_copy(update={"data": ()})
    (run / "run.json").write_text(old.model_dump_json())
    store = Store.open(run.parent / "store")
    found = plan_run(run, wanted(store), store)
    assert "did not record its data" in found.remarks[0]
    assert len(claim_run(run, found).data) == len(read_run(run).data) == 1
    assert plan_run(run, wanted(store), store).remarks == ()


def test_cases_that_an_earlier_version_lacks_are_found_by_its_sides(run: Path) -> None:
    old = read_run(run).model_copy(update={"data": ()})
    (run / "run.json").write_text(old.model_dump_json())
    with pytest.raises(ConfigError, match=r"1 case added \(case_6\)"):
        planned(run, balls(7))


def test_lost_digests_of_cases_still_tell_that_something_changed(run: Path) -> None:
    (name,) = (run / "data").iterdir()
    name.write_text("{")
    with pytest.raises(ConfigError, match="which cases cannot be told"):
        planned(run, balls(5))


def test_what_has_changed_since_a_run_in_words(run: Path) -> None:
    assert changed_since(run, read_run(run), Store.open(run.parent / "store")) == ""
    assert changed_since(run, read_run(run), store_of(run.parent / "less", balls(5))) == "1 case removed (case_5)"
