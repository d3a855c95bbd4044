"""Every step on generated scans: phantoms -> check -> ingest -> train -> evaluate, for all three recipes.

The recipes are the published ones with smaller networks and patches on a coarser grid, so that two CPU cores finish
in minutes; every other step is what a user runs. An untrained network is scored beside each trained one, so that
the table itself shows that something was learnt.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from voxray import __version__
from voxray.commands.check import check
from voxray.commands.evaluate import EvaluateOptions, evaluate
from voxray.commands.ingest import ingest
from voxray.commands.peak_memory import Peak, peak_memory
from voxray.commands.train import train
from voxray.core.errors import ConfigError, DataError
from voxray.core.evaluation import Evaluation
from voxray.core.progress import Progress
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.core.written import require_empty
from voxray.dataset import read_dataset
from voxray.distributed.cluster import connect
from voxray.distributed.training import TrainOptions
from voxray.inference.trained_model import open_model
from voxray.loading import list_cases, load_case
from voxray.phantoms import write_toy
from voxray.phantoms.write import MARK
from voxray.recipes import read_recipe
from voxray.results.answers import read_answer
from voxray.results.pictures import draw_detections, draw_labels
from voxray.training.checkpoint import Checkpoint, read_run, recipe_of, write_checkpoint

SEED = 7
NUM_PICTURES = 3
_FINE = ("grid.spacing_mm=[2.25, 2.25, 2.5]",)
_COARSE = ("grid.spacing_mm=[3.0, 3.0, 3.0]",)
_OPTIM = ("optim.optimizer='adamw'", "optim.schedule='cosine'", "optim.warmup_epochs=1", "optim.decay_epochs=[]")
# A few hundred steps see each nodule in few guises: variety would cost more of them than it helps.
_CALM = tuple(f"augment.{kind}_p=0" for kind in ("rotate", "zoom", "noise", "blur", "gamma"))


@dataclass(frozen=True)
class DemoTraining:
    """One of the three trainings: a recipe made small, and the phantoms that it learns from."""

    recipe: str
    kind: str
    dataset: str
    """The view of the phantoms, a file beside them."""
    overrides: tuple[str, ...]
    headline: tuple[str, ...]
    """The metrics of the table."""


TRAININGS = (
    DemoTraining(
        recipe="lung_nodule",
        kind="thorax",
        dataset="dataset.toml",
        overrides=(
            *_COARSE,
            *_OPTIM,
            *_CALM,
            "patch.size_vox=[40, 40, 32]",
            "patch.margin_vox=[12, 12, 12]",
            "patch.max_object_vox=[16, 16, 16]",
            "patch.foreground=0.6",
            "network.backbone='resnet10'",
            "network.width=16",
            "network.channels=24",
            "network.norm_groups=4",
            "network.stem_kernel=[3, 3, 3]",
            "network.stem_stride=[1, 1, 1]",
            "network.returned_layers=[1]",
            "anchors.base_shapes_vox=[[5, 5, 5]]",
            "anchors.level_scales=[1, 1.7]",
            "loss.atss_candidates=9",
            "loss.anchors_per_patch=160",
            "loss.hard_pool=3",
            "loss.min_negatives=48",
            "optim.rate=0.0015",
            "optim.epochs=14",
            "optim.steps_per_epoch=30",
            "optim.batch_size=4",
            "optim.validate_every=14",
            "inference.window_vox=[64, 64, 64]",
        ),
        headline=("mAP", "mAR", "AP@0.10", "AR@0.10"),
    ),
    DemoTraining(
        recipe="spleen",
        kind="abdomen",
        dataset="dataset_spleen.toml",
        overrides=(
            *_FINE,
            *_OPTIM,
            "patch.size_vox=[64, 64, 64]",
            "patch.margin_vox=[16, 16, 16]",
            "network.channels=[8, 16, 32, 64]",
            "network.strides=[2, 2, 2]",
            "optim.rate=0.004",
            "optim.epochs=8",
            "optim.steps_per_epoch=15",
            "optim.batch_size=4",
            "optim.validate_every=8",
            "inference.window_vox=[96, 96, 64]",
            "inference.overlap=0.25",
        ),
        headline=("dice",),
    ),
    DemoTraining(
        recipe="whole_body",
        kind="abdomen",
        dataset="dataset.toml",
        overrides=(
            *_COARSE,
            *_OPTIM,
            # The published z-score leaves organs that differ by 10 HU a hundredth apart: too little for a few steps.
            "intensity={kind='window', low_hu=-160.0, high_hu=240.0}",
            "patch.size_vox=[48, 48, 48]",
            "patch.margin_vox=[12, 12, 12]",
            "patch.foreground=0.7",
            "network.init_filters=8",
            "network.dropout=0",
            "optim.rate=0.003",
            "optim.epochs=12",
            "optim.steps_per_epoch=30",
            "optim.batch_size=2",
            "optim.validate_every=12",
            "inference.window_vox=[64, 64, 48]",
            "inference.overlap=0.25",
        ),
        headline=("dice",),
    ),
)


@dataclass(frozen=True)
class DemoResult:
    """What one training came to."""

    recipe: str
    dataset: str
    num_train: int
    num_val: int
    trained: Mapping[str, float]
    untrained: Mapping[str, float]
    seconds: Mapping[str, float]
    peak_memory_bytes: int
    run: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class DemoReport:
    """What all trainings came to, and where everything lies."""

    folder: str
    outcomes: tuple[DemoResult, ...]
    seconds: float
    voxray_version: str = __version__


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    seconds[step] = time.monotonic() - begin


def demo(folder: Path, *, num_cases: int = 24, workers: int = 2, progress: Progress) -> DemoReport:
    """Runs every step for each training under `folder`; what an earlier call finished there is not done again."""
    begin = time.monotonic()
    if not any((folder / "phantoms").glob(f"*/{MARK}")):
        require_empty(Place.of(folder), "demo")
    with connect(), peak_memory(every_s=5.0) as peak:
        outcomes = [
            _run(training, folder, num_cases=num_cases, workers=workers, peak=peak, progress=progress)
            for training in TRAININGS
        ]
    report = DemoReport(folder=str(folder), outcomes=tuple(outcomes), seconds=time.monotonic() - begin)
    write_summary(report, folder / "summary.json")
    return report


def _run(
    training: DemoTraining, folder: Path, *, num_cases: int, workers: int, peak: Peak, progress: Progress
) -> DemoResult:
    seconds: dict[str, float] = {}
    peak.bytes = 0
    phantoms, name = folder / "phantoms" / training.kind, training.recipe
    with _timed(seconds, "phantoms"), progress.track(f"{name}: phantoms", total=num_cases, unit="cases") as advance:
        write_toy(phantoms, kind=training.kind, num_cases=num_cases, seed=SEED, progress=advance)
    dataset = read_dataset(phantoms / training.dataset)
    recipe = read_recipe(name, overrides=training.overrides)
    with _timed(seconds, "check"):
        problems = check(dataset, progress=progress).problems
        if problems:
            raise DataError("demo.problems", f"{problems[0]}.", remedy=f"Remove {phantoms} and run the demo again.")
    store, run, untrained = (folder / kind / name for kind in ("stores", "runs", "untrained"))
    with _timed(seconds, "ingest"):
        ingest(dataset, recipe, str(store), progress=progress)
    with _timed(seconds, "train"):
        options = TrainOptions(workers=workers, seed=SEED, name=f"demo_{name}")
        train(str(store), recipe, str(run), options, progress=progress)
    with _timed(seconds, "evaluate"):
        trained_score = _score(run, phantoms / training.dataset, folder / "answers" / name, workers, progress)
    write_untrained(run, untrained)
    untrained_score = _score(
        untrained, phantoms / training.dataset, folder / "untrained_answers" / name, workers, progress
    )
    about = read_run(str(run))
    return DemoResult(
        recipe=name,
        dataset=dataset.name,
        num_train=len(about.train_cases),
        num_val=len(about.val_cases),
        trained=_with_value(trained_score),
        untrained=_with_value(untrained_score),
        seconds=seconds,
        peak_memory_bytes=peak.bytes,
        run=str(run),
        pictures=draw_answers(run, phantoms / training.dataset, folder / "answers" / name, folder / "pictures"),
    )


def _score(run: Path, dataset: Path, output: Path, workers: int, progress: Progress) -> Evaluation:
    report = evaluate(run, EvaluateOptions(workers=workers), dataset=dataset, output=output, progress=progress)
    if wrong := {**report.failed, **report.not_judged}:
        case, why = next(iter(wrong.items()))
        raise ConfigError(f"{run}: case {case} has no score: {why}")
    return report


def _with_value(score: Evaluation) -> dict[str, float]:
    return {name: value for name, value in score.metrics.items() if math.isfinite(value)}


def write_untrained(run: Path, output: Path) -> None:
    """The run's network as it was before the first step, as a run of its own."""
    about = read_run(str(run))
    recipe: Recipe = recipe_of(about)
    torch.manual_seed(SEED)
    network = recipe.network.build(recipe, len(about.classes))
    about = about.model_copy(update={"name": f"{about.name}_untrained"})
    write_checkpoint(str(output), Checkpoint(run=about, weights=network.state_dict(), epochs_done=0, finished=True))


def draw_answers(run: Path, dataset_file: Path, answers: Path, output: Path) -> tuple[str, ...]:
    """Pictures of the first validation cases' answers over their truth."""
    model, dataset = open_model(str(run)), read_dataset(dataset_file)
    sources = [source for source in list_cases(dataset) if source.case_id in model.run.val_cases]
    written = []
    output.mkdir(parents=True, exist_ok=True)
    for source in sources[:NUM_PICTURES]:
        case = load_case(dataset, source)
        answer = read_answer(answers, case=source.case_id, grid=case.image.grid, model=model)
        if answer.labels is None:
            picture = draw_detections(case, answer.detections, classes=dataset.classes)
        else:
            picture = draw_labels(case.image, answer.labels.voxels, case.labels, classes=dataset.classes)
        path = output / f"{model.recipe.name}_{source.case_id}.png"
        path.write_bytes(picture)
        written.append(str(path))
    return tuple(written)


def write_summary(report: DemoReport, path: Path) -> None:
    """The report as JSON."""
    path.write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")


def headline(outcome: DemoResult) -> Sequence[tuple[str, float, float]]:
    """The table's rows of a training: metric, trained, untrained; classes of a segmentation one by one."""
    training = next(training for training in TRAININGS if training.recipe == outcome.recipe)
    names = [*training.headline]
    if outcome.recipe != "lung_nodule":
        names += [name for name in outcome.trained if name.startswith("dice/")]
    return [(name, outcome.trained[name], outcome.untrained.get(name, float("nan"))) for name in names]
