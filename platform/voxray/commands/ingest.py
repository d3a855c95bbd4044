"""`voxray ingest`: a dataset preprocessed once into a store of tiles that training streams.

Each case is one Ray task: read, turned and resampled, cut into tiles, written as a shard. Only a summary comes back,
so memory does not grow with the dataset. A shard that is there and was made from the same scan, truth and recipe is
kept, whatever ended the last run: what files hold is compared, never their names or dates. What changed is made anew,
what left the dataset is removed. A case that fails is set aside with its reason. The manifest comes last: until then
the store counts as unfinished.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from voxray.core.apart import keep_apart
from voxray.core.bulkhead import sentence_of
from voxray.core.errors import DataError, ResourceError
from voxray.core.progress import Progress, tell_warnings
from voxray.core.recipe import NetworkConfig, Recipe
from voxray.core.storage import Place
from voxray.dataset import CaseSource, Dataset
from voxray.distributed.cluster import connect
from voxray.distributed.metrics import count_case
from voxray.distributed.parallel import TaskOptions, task_map
from voxray.distributed.placement import require_cpus
from voxray.loading import case_content, load_case, survey
from voxray.loading.at_hand import case_at_hand
from voxray.loading.inputs import ELSEWHERE, dataset_inputs, require_no_scan_of
from voxray.preprocess import prepare_case
from voxray.store import (
    FailedCase,
    Manifest,
    StoredCase,
    find_stored_case,
    is_disk_full,
    is_shard,
    known_entries,
    remove_case,
    require_store_folder,
    set_manifest_aside,
    stored_case_ids,
    write_case,
    write_manifest,
)
from voxray.store.signature import signature_of
from voxray.training.preflight import SplitSummaries, as_warnings, data_findings, recipe_findings

_NO_IMAGE = "annotations.no_image"
_DISK_FULL = "disk.full"
_PROBE = ".voxray_can_write"
_LOOKS = 8


@dataclass(frozen=True)
class IngestReport:
    """What `ingest` did; ids in ascending order."""

    store: str
    done: tuple[str, ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    failed: Mapping[str, str]
    """The reason, by case id."""
    num_tiles: int
    size_bytes: int
    seconds: float
    manifest: Manifest
    foreseen: tuple[str, ...] = ()
    """What a training on all cases with this recipe could hardly learn, or not at all."""

    @property
    def warnings(self) -> dict[str, tuple[str, ...]]:
        """What is worth knowing of each case that is in the store, by case id."""
        return {case_id: entry.warnings for case_id, entry in self.manifest.cases.items() if entry.warnings}

    def __str__(self) -> str:
        size = f"{self.num_tiles} tiles, {self.size_bytes / 2**30:.2f} GiB"
        lines = [
            f"{self.store}: {len(self.manifest.cases)} cases in {size}",
            f"{len(self.done)} done in {self.seconds:.0f} s, {len(self.kept)} kept as they were, "
            f"{len(self.removed)} removed, {len(self.failed)} set aside",
        ]
        if self.warnings:
            lines.append(f"{len(self.warnings)} cases with warnings, which the manifest lists, too")
        return "\n".join([*lines, *self.foreseen, *self.failed.values()])


def ingest(
    dataset: Dataset,
    recipe: Recipe,
    store_uri: str | Path,
    *,
    progress: Progress,
) -> IngestReport:
    """Makes or completes the dataset's store for the recipe; a full disk or no usable case is a VoxrayError."""
    begin = time.monotonic()
    _require_free(dataset, Place.of(store_uri))
    seen = dataset.for_task(recipe.task)
    every, failed = _sources(seen)
    sources = [source for source in every if source.case_id not in failed]
    place = _writable(store_uri)
    stored = dict(_kept(place, seen, sources, recipe, progress=progress))
    kept = tuple(sorted(stored))
    for case_id in kept:
        tell_warnings(progress, f"case {case_id}", stored[case_id].summary.warnings)
    removed = _clear(place, [source.case_id for source in sources], stored)
    todo = [source for source in sources if source.case_id not in stored]
    job = _Job(place, seen, _without_network(recipe))
    with progress.track("ingest", total=len(todo), unit="cases") as advance:
        for case_id, result in _on_ray(job, todo, progress) if todo else ():
            count_case(done=not isinstance(result, FailedCase))
            if isinstance(result, FailedCase):
                failed[case_id] = result
                progress.say(f"set aside: {result.message}")
            else:
                stored[case_id] = result
                tell_warnings(progress, f"case {case_id}", result.summary.warnings)
            advance(1)
    if not stored:
        raise _nothing(failed)
    manifest = write_manifest(
        place,
        list(stored.values()),
        recipe,
        dataset=dataset.model_dump(mode="json"),
        failed=_placed(failed, every),
        images={source.case_id: source.image for source in sources},
    )
    return IngestReport(
        store=place.uri,
        done=tuple(sorted(set(stored) - set(kept))),
        kept=kept,
        removed=removed,
        failed={case_id: one.message for case_id, one in sorted(failed.items())},
        num_tiles=sum(len(one.summary.tiles) for one in stored.values()),
        size_bytes=sum(file.bytes for one in stored.values() for file in one.files),
        seconds=time.monotonic() - begin,
        manifest=manifest,
        foreseen=_foreseen(dataset, recipe, stored),
    )


def _nothing(failed: Mapping[str, FailedCase]) -> DataError:
    text = f"none of {len(failed)} cases can be used."
    return DataError("ingest.nothing", text, remedy=failed[min(failed)].message)


def _foreseen(dataset: Dataset, recipe: Recipe, stored: Mapping[str, StoredCase]) -> tuple[str, ...]:
    """What the training that follows will refuse or warn of, of which no fold is known yet."""
    cases = tuple(one.summary for _, one in sorted(stored.items()))
    sides = SplitSummaries(dataset.classes, cases, validates=False)
    return as_warnings([*recipe_findings(recipe), *data_findings(recipe, sides)])


def signature(dataset: Dataset, source: CaseSource, recipe: Recipe) -> str:
    """A digest of all that a case's shard is made from: scan, truth, patient and recipe, by what they hold.

    Names, folders and times have no part in it. A DataError where a file of the case cannot be read.
    """
    content = case_content(dataset, source)
    return signature_of(content.scan, content.truth, source.patient_id, recipe)


def _sources(dataset: Dataset) -> tuple[list[CaseSource], dict[str, FailedCase]]:
    """All cases, and those that are set aside before a voxel is read; a fault of the dataset as a whole is raised."""
    found = survey(dataset)
    failed: dict[str, FailedCase] = {}
    for problem in found.problems:
        if problem.code == _NO_IMAGE:
            continue
        if problem.case_id is None:
            raise problem
        failed.setdefault(problem.case_id, FailedCase(code=problem.code, message=str(problem)))
    return list(found.cases), failed


def _placed(failed: Mapping[str, FailedCase], sources: Sequence[CaseSource]) -> dict[str, FailedCase]:
    """The cases that were set aside, with whose and where they are."""
    known = {source.case_id: source for source in sources}
    return {
        case_id: one.model_copy(update={"patient_id": known[case_id].patient_id, "image": known[case_id].image})
        if case_id in known
        else one
        for case_id, one in failed.items()
    }


def _require_free(dataset: Dataset, place: Place) -> None:
    """A ConfigError, before any work, where the store's folder is one that is read, or holds what others wrote."""
    if place.is_local:
        folder = Path(place.uri)
        keep_apart([folder], dataset_inputs(dataset), instead=ELSEWHERE)
        require_no_scan_of(dataset, [folder])
    require_store_folder(place)


def _writable(store_uri: str | Path) -> Place:
    place = Place.of(store_uri)
    try:
        place.write(_PROBE, b"")
        place.remove(_PROBE)
        place.sweep("cases")
    except ResourceError as error:
        raise (_disk_full(place) if is_disk_full(error) else error) from None
    return place


def _kept(
    place: Place,
    dataset: Dataset,
    sources: Sequence[CaseSource],
    recipe: Recipe,
    *,
    progress: Progress,
) -> Iterator[tuple[str, StoredCase]]:
    """The cases whose shards are there, whole, and made from what is there now.

    Only files of cases that have a shard are read here; those of the others are read by the tasks that make them.
    """
    known, stored = known_entries(place), set(stored_case_ids(place))
    there = [source for source in sources if source.case_id in stored]
    if not there:
        return

    def look(source: CaseSource) -> StoredCase | None:
        try:
            wanted = signature(dataset, source, recipe)
        except (DataError, OSError):
            return None  # its task says why
        return find_stored_case(place, source.case_id, wanted, entry=known.get(source.case_id))

    with (
        progress.track("compare", total=len(there), unit="cases") as advance,
        ThreadPoolExecutor(_LOOKS) as pool,
    ):
        for source, found in zip(there, pool.map(look, there), strict=True):
            advance(1)
            if found is not None:
                yield source.case_id, found


def _clear(place: Place, wanted: Sequence[str], stored: Mapping[str, StoredCase]) -> tuple[str, ...]:
    """Removes shards that are not kept, once the manifest is out of the way; which cases have left the dataset."""
    there = [case_id for case_id in stored_case_ids(place) if case_id not in stored]
    stale = [case_id for case_id in there if case_id in wanted or is_shard(place, case_id)]
    if stale or any(case_id not in stored for case_id in wanted):
        set_manifest_aside(place)
    for case_id in stale:
        remove_case(place, case_id)
    return tuple(sorted(set(stale) - set(wanted)))


@dataclass(frozen=True)
class _Job:
    """What every task needs."""

    place: Place
    dataset: Dataset
    recipe: Recipe


def _on_ray(
    job: _Job, todo: Sequence[CaseSource], progress: Progress
) -> Iterator[tuple[str, StoredCase | FailedCase]]:
    """Each case's result as soon as it is there."""
    options = TaskOptions(scheduling="SPREAD")
    with connect(num_cpus=os.cpu_count() or 1):
        require_cpus(1.0, "reading a case")
        with closing(
            task_map(partial(_ingest_case, job=job), todo, options, lost=_died, progress=progress)
        ) as results:
            for source, result in results:
                if isinstance(result, FailedCase) and result.code == _DISK_FULL:
                    raise _disk_full(job.place)
                yield source.case_id, result


def _ingest_case(source: CaseSource, job: _Job) -> StoredCase | FailedCase:
    """One case from its files to its shard, or why not; nothing but the worker's death leaves it unanswered."""
    try:
        with case_at_hand(job.dataset, source) as at_hand:
            # Before the files are read: what changes in between is made anew by the next run.
            origin = signature(job.dataset, at_hand.source, job.recipe)
            case = load_case(job.dataset, at_hand.source)
        prepared = prepare_case(case, job.recipe.grid, task=job.recipe.task, classes=job.dataset.classes)
        return write_case(
            job.place,
            prepared,
            job.recipe,
            original_grid=case.image.grid,
            signature=origin,
        )
    except DataError as error:
        error = error if error.case_id else error.of_case(source.case_id)
        return FailedCase(code=error.code, message=str(error))
    except Exception as error:
        if is_disk_full(error):
            return FailedCase(code=_DISK_FULL, message=str(error))
        text = f"case {source.case_id}: [ingest.unexpected] {sentence_of(error)}"
        return FailedCase(code="ingest.unexpected", message=text)


def _without_network(recipe: Recipe) -> Recipe:
    """To unpickle the network's configuration a task would import all networks, for seconds."""
    return recipe.model_copy(update={"network": NetworkConfig(kind=recipe.network.kind)})


def _died(source: CaseSource, story: str) -> FailedCase:
    text = (
        f"case {source.case_id}: [ingest.worker_died] {story} Use a machine with more memory, let Ray work on "
        f"fewer cases at a time (`ray start --head --num-cpus=1`), or exclude the case."
    )
    return FailedCase(code="ingest.worker_died", message=text)


def _disk_full(place: Place) -> ResourceError:
    return ResourceError(
        f"{place.uri}: no space is left; the cases that are done are kept. Free some, or move the store, and run the "
        f"same command again."
    )
