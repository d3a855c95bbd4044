"""`voxray train`: a training on a store, or on a dataset's file that is ingested first."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from voxray.commands.ingest import ingest
from voxray.core.progress import Progress
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.dataset import read_dataset, split
from voxray.distributed import training
from voxray.distributed.training import TrainOptions, TrainReport
from voxray.loading import list_cases
from voxray.loading.inputs import keep_out_of_store
from voxray.training.checkpoint import require_run_folder
from voxray.training.preflight import judged, recipe_findings


def train(
    source: str | Path, recipe: Recipe, output: str | Path, options: TrainOptions, *, progress: Progress
) -> TrainReport:
    """Trains `recipe` on a store, or on a dataset's file, into the run folder `output`.

    The store of a dataset's file lies beside the run, as ``<run>-store``. Where `output` holds the same run already,
    it goes on from its last checkpoint.
    """
    if Path(str(source)).suffix not in (".toml", ".json"):
        return training.train(source, recipe, output, options, progress=progress)
    begin, location = time.monotonic(), Place.of(output).uri
    # What can be refused is refused before the hours that preprocessing may take.
    judged(recipe_findings(recipe), recipe.name)
    dataset = read_dataset(source)
    seen = dataset.for_task(recipe.task)
    split(list_cases(seen), options.folds or seen.folds, options.fold)
    require_run_folder(location)
    keep_out_of_store(location, source)
    store = f"{location}-store"
    ingest(dataset, recipe, store, progress=progress)
    report = training.train(store, recipe, output, options, progress=progress)
    return replace(report, seconds=time.monotonic() - begin)
