"""The journal: Optuna's own, written a batch at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from voxray.sweeping.journal import Journal


def stored(journal: Any) -> JournalStorage:
    return JournalStorage(journal)


def test_what_is_flushed_is_optunas_journal_and_nothing_else_is(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "study.journal")
    study = optuna.create_study(storage=stored(journal), study_name="a")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=5)
    assert not (tmp_path / "study.journal").exists()
    journal.flush()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=2)
    theirs = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    assert len(optuna.load_study(storage=theirs, study_name="a").trials) == 5
    journal.flush()
    again = optuna.load_study(storage=stored(Journal(tmp_path / "study.journal")), study_name="a")
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]
    assert again.best_value == study.best_value


def test_an_entry_that_was_cut_short_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    journal = Journal(path)
    study = optuna.create_study(storage=stored(journal), study_name="a")
    study.ask()
    journal.flush()
    before = path.read_bytes()
    path.write_bytes(before + b'{"op_code": 4, "wor')
    journal = Journal(path)
    study = optuna.load_study(storage=stored(journal), study_name="a")
    assert len(study.trials) == 1
    study.ask()
    journal.flush()
    assert path.read_bytes().startswith(before)
    assert len(optuna.load_study(storage=stored(Journal(path)), study_name="a").trials) == 2
