"""The settings of a study tried through Ray Tune: the same space and the same study, with Tune's actors and reports.

It takes tens of milliseconds more a trial than asking and telling does, and is here for what is built upon Tune.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from voxray.core.storage import Place
from voxray.distributed.losses import MAX_DEATHS
from voxray.distributed.parallel import Shared
from voxray.sweeping.optuna_study import SweepStudy, quiet
from voxray.sweeping.trials import MergeTrials, Replays, run_trial

if TYPE_CHECKING:
    from ray.tune import RunConfig


def _run_config(scratch: str) -> RunConfig:
    """Where Tune writes, and how often it begins a setting again whose actor was lost."""
    from ray import tune

    path, system = Place.of(scratch).arrow()
    failures = tune.FailureConfig(max_failures=MAX_DEATHS)
    return tune.RunConfig(storage_path=path, storage_filesystem=system, verbose=0, failure_config=failures)


def tune_settings(study: SweepStudy, replays: Replays, trials: MergeTrials, advance: Callable[[int], None]) -> None:
    """Makes the trials that are missing of the study's plan; nothing is given up early."""
    missing = study.plan.trials - len(study.finished())
    if missing <= 0:
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables would go to standard output
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("ray.tune").setLevel(logging.ERROR)

    class Trial(tune.Trainable):
        """One setting after another in one actor."""

        def setup(self, config: dict[str, Any]) -> None:
            """Opens the replay, once."""
            if not hasattr(self, "_replays"):
                self._replays = held.open()
            self._setting = config

        def step(self) -> dict[str, Any]:
            """The score of the setting."""
            return {"score": run_trial(self._replays, trials.of(self._setting)).score, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: a trial is over before it could be interrupted."""
            del checkpoint_dir

        def load_checkpoint(self, checkpoint: object) -> None:
            """Nothing."""
            del checkpoint

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Takes the next setting."""
            self._setting = new_config
            return True

    held = Shared(replays)
    with quiet(), tempfile.TemporaryDirectory(prefix="voxray_tune_") as scratch:
        algorithm = OptunaSearch(
            space=study.distributions,
            metric="score",
            mode="max",
            sampler=study.study.sampler,
            storage=study.storage,
            study_name=study.name,
        )
        tuner = tune.Tuner(
            Trial,
            tune_config=tune.TuneConfig(search_alg=algorithm, num_samples=missing, reuse_actors=True),
            run_config=_run_config(scratch),
        )
        results = tuner.fit()
        if results.num_errors:
            raise results.errors[0]
    study.journal.flush()
    advance(missing)
