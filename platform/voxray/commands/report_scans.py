"""What a report takes from scans: the size and intensity of true objects, and pictures of what is worth seeing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from voxray.core.addresses import Location
from voxray.core.answer_json import find_answer_file
from voxray.core.bulkhead import sentence_of
from voxray.core.case import Case
from voxray.core.detections import Detections, boxes_to_voxel
from voxray.core.errors import ConfigError, DataError
from voxray.core.evaluation import CaseFindings, Evaluation
from voxray.core.progress import Progress
from voxray.core.run import Run
from voxray.core.staging import is_file_at
from voxray.core.text import first_few
from voxray.core.volume import Volume
from voxray.dataset import CaseSource, Dataset, num_folds, read_dataset
from voxray.distributed.parallel import WorkerPool, open_pool, pool_map
from voxray.loading import list_cases, load_case, scan_content, truth_content
from voxray.loading.at_hand import volume_at_hand
from voxray.readers import read_volume
from voxray.report import Data, Scans, Shown
from voxray.report.entry import PictureKind
from voxray.report.objects import sizes_in
from voxray.report.picks import Pick, pick_cases, pick_findings
from voxray.results.class_names import read_labels
from voxray.results.pictures import cut_closeup, draw_labels, draw_montage

CLOSEUP_MM, CLOSEUP_PX, CASE_PX = 60.0, 150, 300
_KINDS = {"hit": "hit", "false": "false finding", "missed": "missed object"}


@dataclass(frozen=True)
class ScoredScans:
    """A dataset whose scans can be read, and the cases of an evaluation among them."""

    dataset: Dataset
    data: Data
    sources: tuple[CaseSource, ...]


class CaseMeasures(NamedTuple):
    """What a scan says of its case's objects or structures; `error` is why it says nothing."""

    case_id: str
    sizes_mm: Float64[np.ndarray, " n"] = np.zeros(0)
    """The mean side of each object."""
    objects_hu: Float64[np.ndarray, " n"] = np.zeros(0)
    """The mean of the ellipsoid in each object's box."""
    structures_hu: Mapping[str, float] = {}
    """Class -> the mean of its true voxels."""
    error: str = ""
    warnings: tuple[str, ...] = ()


class ScanReport(NamedTuple):
    """What was taken from the scans of an evaluation."""

    scans: Scans
    lacking: tuple[str, ...]
    """A sentence for each case that could not be measured or pictured."""
    odd: tuple[str, ...]
    """What is worth knowing of the scans."""


class PictureRequest(NamedTuple):
    """Pictures to take of a case: of findings and objects, or of the case as a whole."""

    source: CaseSource
    case: CaseFindings | None
    picks: tuple[Pick, ...]
    kind: PictureKind | None = None
    caption: str = ""


def find_scored_scans(
    evaluation: Evaluation, run: Run | None, file: Path | None, root: Location | None
) -> ScoredScans | str:
    """The dataset that an evaluation was made on, or why its scans are not in reach; one that is given must fit."""
    if file is not None:
        return _scored_scans(evaluation, file, root)
    if run is None or run.dataset_file is None:
        return "no dataset file is known; give one with --dataset FILE."
    if not is_file_at(run.dataset_file):
        return "the dataset file that the run was trained with is gone; give one with --dataset FILE."
    try:
        return _scored_scans(evaluation, run.dataset_file, root)
    except ConfigError as error:
        return str(error)


def read_scored_scans(
    evaluation: Evaluation, found: ScoredScans, answers: Path, *, workers: int, progress: Progress
) -> ScanReport:
    """Sizes, intensities and pictures, and what could not be had; `answers` holds the label maps that were found."""
    with open_pool(workers, progress=progress) as pool:
        scans, lacking, odd = _measure(evaluation, found, pool, progress)
        requests = _requests(evaluation, found, scans)
        pictures: dict[PictureKind, list[Shown]] = {}
        with progress.track("pictures", total=len(requests), unit="cases") as advance:
            draw = partial(CasePictures, evaluation, found.dataset, answers)
            for shown, error in pool_map(draw, requests, pool, lost=_no_picture):
                lacking += [f"There is no picture: {error}"] if error else []
                for one in shown:
                    pictures.setdefault(one.kind, []).append(one)
                advance(1)
    ordered = [one for kind in pictures.values() for one in sorted(kind, key=lambda one: one.rank)]
    return ScanReport(replace(scans, pictures=tuple(ordered)), tuple(lacking), tuple(odd))


class CaseMeasurer:
    """Measures the true objects of one case after another in its scan."""

    def __init__(self, evaluation: Evaluation, dataset: Dataset) -> None:
        self._evaluation, self._dataset = evaluation, dataset

    def __call__(self, item: tuple[CaseSource, CaseFindings | None]) -> CaseMeasures:
        """The case's sizes and intensities."""
        source, case = item
        try:
            measures = _objects(source, case) if case is not None else _structures(self._dataset, source)
            require_scored(self._evaluation, self._dataset, source)
        except Exception as error:
            return CaseMeasures(source.case_id, error=sentence_of(error))
        return measures


def require_scored(evaluation: Evaluation, dataset: Dataset, source: CaseSource) -> None:
    """A DataError where a case's scan, or the label map that is drawn, is no longer the one that was scored."""
    known = evaluation.contents.get(source.case_id)
    if known is None:
        return
    is_scan = scan_content(source) == known.scan
    if is_scan and (evaluation.detection is not None or truth_content(dataset, source) == known.truth):
        return
    what = "truth" if is_scan else "scan"
    text, remedy = f"its {what} has changed since it was scored.", "Evaluate again."
    raise DataError(f"report.other_{what}", text, remedy=remedy, case_id=source.case_id)


class CasePictures:
    """Takes the pictures of one case after another."""

    def __init__(self, evaluation: Evaluation, dataset: Dataset, answers: Path) -> None:
        self._evaluation, self._dataset, self._answers = evaluation, dataset, answers
        self._classes = evaluation.classes
        self._failed = frozenset(evaluation.failed)

    def __call__(self, request: PictureRequest) -> tuple[list[Shown], str]:
        """The pictures, or why there are none."""
        try:
            return self._whole(request) if request.case is None else self._closeups(request), ""
        except Exception as error:
            return [], f"{request.source.case_id}: {sentence_of(error)}"

    def _closeups(self, request: PictureRequest) -> list[Shown]:
        assert request.case is not None
        image = _read_scan(request.source)
        require_scored(self._evaluation, self._dataset, request.source)
        truth = _in_voxels(request.case.truth_boxes, request.case, image)
        case = Case(request.source.case_id, "", image, truth, np.array(request.case.truth_classes, np.int64))
        found = Detections(
            _in_voxels(request.case.boxes, request.case, image).astype(np.float32),
            np.array(request.case.scores, np.float32),
            np.array(request.case.classes, np.int64),
        )
        return [self._closeup(case, found, request.case, pick) for pick in request.picks]

    def _closeup(self, case: Case, found: Detections, findings: CaseFindings, pick: Pick) -> Shown:
        box = _in_voxels((pick.box,), findings, case.image)[0]
        sides_mm = (box[3:] - box[:3]) * np.asarray(case.image.grid.spacing_mm)
        shown = found.take(np.array(findings.scores) >= pick.min_score)
        side_mm = max(CLOSEUP_MM, 1.6 * float(sides_mm.max()))
        closeup = cut_closeup(case, shown, ((box[:3] + box[3:]) / 2).tolist(), title="", side_mm=side_mm)
        size, score = float(sides_mm.mean()), "" if math.isnan(pick.score) else f", score {pick.score:.2f}"
        caption = f"{case.case_id}: {self._classes[pick.class_index]}, {size:.1f} mm{score}"
        alt = f"{_KINDS[pick.kind].capitalize()} in three planes of {side_mm:.0f} mm, {caption}"
        rank = -size if pick.kind == "missed" else -pick.score
        return Shown(pick.kind, caption, alt, draw_montage([closeup], columns=1, side_px=CLOSEUP_PX), rank)

    def _whole(self, request: PictureRequest) -> list[Shown]:
        assert request.kind is not None
        case = load_case(self._dataset, request.source)
        require_scored(self._evaluation, self._dataset, request.source)
        labels = self._labels(case)
        caption = request.caption
        if labels is None:
            # An evaluation of others' label maps does not say where they are.
            why = "it has no answer" if case.case_id in self._failed else "its answer is not beside the score"
            caption = f"{caption}; {why}, only truth is drawn"
        picture = draw_labels(case.image, labels, case.labels, classes=self._dataset.classes, height_px=CASE_PX)
        alt = f"Three planes with what was found and what is true: {caption}"
        return [Shown(request.kind, caption, alt, picture, 0.0)]

    def _labels(self, case: Case) -> np.ndarray[Any, Any] | None:
        path = self._answers / f"{case.case_id}.json"
        if not path.exists():
            return None
        file, weights = find_answer_file(path), self._evaluation.weights_sha256
        if file is not None and weights and file.model.sha256 not in weights:
            text = "its answer is no longer the one that was scored."
            raise DataError("report.other_answer", text, remedy="Evaluate again.", case_id=case.case_id)
        try:
            return read_labels(path, self._dataset.classes, case.image.grid).voxels
        except DataError as error:
            raise error.of_case(case.case_id) from error


def _scored_scans(evaluation: Evaluation, file: Location, root: Location | None) -> ScoredScans:
    dataset = read_dataset(file, root=root).for_task(evaluation.task)
    if (dataset.name, dataset.classes) != (evaluation.dataset, evaluation.classes):
        raise ConfigError(
            f"{file}: is {dataset.name} with {first_few(dataset.classes)}; {evaluation.run} was scored on "
            f"{evaluation.dataset} with {first_few(evaluation.classes)}; give that one's file with --dataset."
        )
    sources = {source.case_id: source for source in list_cases(dataset)}
    missing = [case_id for case_id in evaluation.cases if case_id not in sources]
    if missing:
        raise ConfigError(f"{file}: has no case {first_few(missing)}, which {evaluation.run} was scored on.")
    data = Data(
        name=dataset.name,
        licence=dataset.licence,
        about=dataset.about,
        folds=_folds(dataset),
        num_cases=len(sources),
        num_patients=len({source.patient_id for source in sources.values()}),
    )
    return ScoredScans(dataset, data, tuple(sources[case_id] for case_id in evaluation.cases))


def _folds(dataset: Dataset) -> str:
    count = num_folds(dataset.folds)
    return f"{dataset.folds.kind}, {count} fold{'s' if count != 1 else ''}"


def _measure(
    evaluation: Evaluation, found: ScoredScans, pool: WorkerPool, progress: Progress
) -> tuple[Scans, list[str], list[str]]:
    part = evaluation.detection
    items = [(source, part.cases[source.case_id] if part else None) for source in found.sources]
    # Scans without an object have nothing to measure.
    items = [(source, case) for source, case in items if case is None or case.truth_boxes]
    results: list[CaseMeasures] = []
    with progress.track("scans", total=len(items), unit="cases") as advance:
        for one in pool_map(partial(CaseMeasurer, evaluation, found.dataset), items, pool, lost=_not_measured):
            results.append(one)
            advance(1)
    good = [one for one in results if not one.error]
    lacking = [f"Nothing was measured in {one.case_id}: {one.error}" for one in results if one.error]
    # An evaluation of findings in files has not read the scans; what it knows is told where it is shown.
    unknown = [one for one in results if one.case_id not in evaluation.warnings]
    odd = [f"{one.case_id}: warning: {text}" for one in unknown for text in one.warnings]
    scans = Scans(
        sizes_mm={one.case_id: one.sizes_mm for one in good},
        objects_hu={one.case_id: one.objects_hu for one in good},
        structures_hu={one.case_id: one.structures_hu for one in good},
    )
    return scans, lacking, odd


def _not_measured(item: tuple[CaseSource, CaseFindings | None], story: str) -> CaseMeasures:
    return CaseMeasures(item[0].case_id, error=story)


def _no_picture(request: PictureRequest, story: str) -> tuple[list[Shown], str]:
    return [], f"{request.source.case_id}: {story}"


def _requests(evaluation: Evaluation, found: ScoredScans, scans: Scans) -> list[PictureRequest]:
    sources = {source.case_id: source for source in found.sources}
    if evaluation.segmentation is not None:
        means = evaluation.cases
        return [
            PictureRequest(
                sources[case_id], None, (), kind, f"{case_id}: mean Dice {np.mean([*means[case_id].values()]):.3f}"
            )
            for kind, case_id in pick_cases(evaluation.segmentation)
        ]
    assert evaluation.detection is not None
    cases = evaluation.detection.cases
    sizes = {case_id: sizes_in(case) for case_id, case in cases.items()} | dict(scans.sizes_mm)
    of_case: dict[str, list[Pick]] = {}
    for pick in pick_findings(evaluation.detection, sizes):
        of_case.setdefault(pick.case_id, []).append(pick)
    return [PictureRequest(sources[case_id], cases[case_id], tuple(picks)) for case_id, picks in of_case.items()]


def _objects(source: CaseSource, case: CaseFindings) -> CaseMeasures:
    image = _read_scan(source)
    boxes = _in_voxels(case.truth_boxes, case, image)
    sides = (boxes[:, 3:] - boxes[:, :3]) * np.asarray(image.grid.spacing_mm)
    means = np.array([_mean_hu(image, box) for box in boxes])
    return CaseMeasures(source.case_id, sides.mean(axis=1), means, warnings=image.warnings)


def _read_scan(source: CaseSource) -> Volume:
    with volume_at_hand(source.image) as image:
        return read_volume(image, accept_values=source.accept_values)


def _mean_hu(image: Volume, box: Float64[np.ndarray, " 6"]) -> float:
    shape = np.array(image.grid.shape)
    low = np.clip(np.floor(box[:3]).astype(int), 0, shape - 1)
    high = np.clip(np.ceil(box[3:]).astype(int), low + 1, shape)
    cube = image.voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    centre, half = (box[:3] + box[3:]) / 2, np.maximum((box[3:] - box[:3]) / 2, 0.5)
    steps = [(np.arange(a, b) + 0.5 - c) / h for a, b, c, h in zip(low, high, centre, half, strict=True)]
    x, y, z = np.meshgrid(*steps, indexing="ij", sparse=True)
    inside = x * x + y * y + z * z <= 1
    return float(cube[inside].mean()) if inside.any() else float(cube.mean())


def _structures(dataset: Dataset, source: CaseSource) -> CaseMeasures:
    case = load_case(dataset, source)
    if case.labels is None:
        raise ConfigError(f"case {case.case_id} has no label map in this dataset.")
    num = len(dataset.classes) + 1
    count = np.zeros(num)
    total = np.zeros(num)
    # Slab by slab: weights of a whole scan would take eight bytes a voxel.
    for labels, voxels in zip(case.labels, case.image.voxels, strict=True):
        count += np.bincount(labels.ravel(), minlength=num)
        total += np.bincount(labels.ravel(), weights=voxels.ravel(), minlength=num)
    means = {name: total[k] / count[k] for k, name in enumerate(dataset.classes, start=1) if count[k]}
    return CaseMeasures(source.case_id, structures_hu=means, warnings=case.warnings)


def _in_voxels(boxes: Sequence[Sequence[float]], case: CaseFindings, image: Volume) -> Float64[np.ndarray, "n 6"]:
    array = np.array(boxes, np.float64).reshape(-1, 6)
    return array if case.frame == "voxel" else boxes_to_voxel(array, image.grid)
