"""Evaluate by LUNA16's official rules: marks against a folder of annotations, and the official script's files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxray.annotations.object_tables import Spheres, read_spheres_by_case
from voxray.core.errors import DataError
from voxray.core.evaluation import Bootstrap, Line, Luna16Evaluation, not_written, try_write_evaluation
from voxray.core.text import first_few
from voxray.core.written import recorded
from voxray.dataset.truth import SpheresCsv
from voxray.metrics.bootstrap import CONFIDENCE, NUM_REPLICATES, SEED, band
from voxray.metrics.froc import RATES
from voxray.metrics.luna16 import MAX_MARKS, Bands, Froc, JudgedMarks, Marks, Nodules, bootstrap, froc, judge
from voxray.scoring.foreign import MarkTable, read_series
from voxray.scoring.foreign.checks import problem, read_text

TRUTH_FILES = ("annotations.csv", "annotations_excluded.csv", "seriesuids.csv")
DRAWN_RATES = np.geomspace(0.125, 8.0, 49)
"""False marks a scan at which the JSON has the curve; the official CSV has 10,000."""


@dataclass(frozen=True)
class Luna16Truth:
    """The scans that count, in order, with their nodules and excluded findings."""

    name: str
    case_ids: tuple[str, ...]
    included: Mapping[str, Spheres]
    excluded: Mapping[str, Spheres]


def evaluate_luna16(
    marks: MarkTable,
    truth: Luna16Truth,
    *,
    name: str,
    output: Path | None = None,
    json_file: Path | None = None,
    overwrite: bool = False,
) -> tuple[Luna16Evaluation, tuple[str, ...]]:
    """The official score of the marks, and why what could not be written could not.

    With `output` the files that the official script writes lie there.
    """
    notices = _notices(marks, truth)
    numbers = {case_id: index for index, case_id in enumerate(truth.case_ids)}
    known = np.array([case_id in numbers for case_id in marks.case_ids], bool)
    scans = np.array([numbers[case_id] for case_id in marks.case_ids if case_id in numbers], np.int64)
    outcome = judge(
        Marks(scans, marks.centres_mm[known], marks.scores[known]),
        _nodules(truth.included, numbers),
        _nodules(truth.excluded, numbers),
        num_scans=len(numbers),
    )
    curve = froc(outcome)
    result = _evaluation(outcome, curve, name=name, truth=truth.name, notices=notices)
    lost = []
    if output is not None:
        bands = bootstrap(outcome, rng=np.random.default_rng(SEED), num=NUM_REPLICATES)
        try:
            write_official(result, outcome, curve, bands, truth=truth, output=output, overwrite=overwrite)
        except Exception as error:
            lost.append(not_written(output, error))
    if json_file is not None:
        lost.append(try_write_evaluation(result, json_file))
    return result, tuple(filter(None, lost))


def is_luna16_folder(path: Path) -> bool:
    """Whether it is a folder with the official truth, whole or in part."""
    return path.is_dir() and any(_file(path, name).exists() for name in TRUTH_FILES)


def read_truth_folder(folder: Path) -> Luna16Truth:
    """annotations.csv, annotations_excluded.csv and seriesuids.csv of a folder, each possibly with .gz."""
    files = [_file(folder, name) for name in TRUTH_FILES]
    for file, name in zip(files, TRUTH_FILES, strict=True):
        if not file.exists():
            remedy = f"A folder of LUNA16's truth holds {', '.join(TRUTH_FILES)}, each possibly with .gz."
            raise problem("missing", f"{folder}: has no {name}.", remedy)
    included, excluded = (_read_spheres(file) for file in files[:2])
    for case_id, spheres in included.items():
        rows = np.column_stack([spheres.centres_mm, spheres.diameters_mm])
        if len(np.unique(rows, axis=0)) < len(rows):
            text = f"{files[0]}: series {case_id} has the same nodule twice."
            raise problem("repeated", text, "Delete one of the two: it would have to be found twice.")
    series = read_series(read_text(files[2]), where=str(files[2]))
    return Luna16Truth(folder.resolve().name, series, included, excluded)


def official_names(name: str) -> tuple[str, str, str, str, str]:
    """The official script's files for answers of that name: counts, curve, samples, bands, missed nodules."""
    return (
        "CADAnalysis.txt",
        f"froc_{name}.txt",
        f"froc_gt_prob_vectors_{name}.csv",
        f"froc_{name}_bootstrapping.csv",
        f"nodulesWithoutCandidate_{name}.txt",
    )


def write_official(
    result: Luna16Evaluation,
    outcome: JudgedMarks,
    curve: Froc,
    bands: Bands,
    *,
    truth: Luna16Truth,
    output: Path,
    overwrite: bool = False,
) -> list[Path]:
    """The official script's files: the counts, the curve, its samples, its bands, the missed nodules."""
    counts, froc_file, samples, bands_file, missed = official_names(result.answers)
    rows = zip(curve.false_per_scan, curve.sensitivity, curve.thresholds, strict=True)
    official = zip(bands.rates, bands.mean, bands.low, bands.high, strict=True)
    texts = {
        counts: _analysis(result),
        froc_file: "".join(f"{fps:.9f},{sens:.9f},{score:.9f}\n" for fps, sens, score in rows),
        samples: _samples(outcome),
        bands_file: "FPrate,Sensivity[Mean],Sensivity[Lower bound],Sensivity[Upper bound]\n"
        + "".join(f"{rate:.9f},{mean:.9f},{low:.9f},{high:.9f}\n" for rate, mean, low, high in official),
        missed: _missed(outcome, truth),
    }
    output.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        with recorded(output / file, overwrite=overwrite) as path:
            path.write_text(text, encoding="utf-8")
    return [output / file for file in texts]


def _file(folder: Path, name: str) -> Path:
    """The file, or the packed one beside it."""
    packed = folder / f"{name}.gz"
    return packed if packed.exists() and not (folder / name).exists() else folder / name


def _read_spheres(file: Path) -> dict[str, Spheres]:
    return read_spheres_by_case(read_text(file), SpheresCsv(file=str(file)), where=str(file))


def _nodules(spheres: Mapping[str, Spheres], numbers: Mapping[str, int]) -> Nodules:
    """The nodules of the scans that count; those of others are no concern of this score."""
    known = {numbers[case_id]: found for case_id, found in spheres.items() if case_id in numbers}
    return Nodules(
        np.repeat(np.array(list(known), np.int64), [len(found.diameters_mm) for found in known.values()]),
        np.concatenate([np.zeros((0, 3)), *(found.centres_mm for found in known.values())]),
        np.concatenate([np.zeros(0), *(found.diameters_mm for found in known.values())]),
    )


def _notices(marks: MarkTable, truth: Luna16Truth) -> tuple[str, ...]:
    """What the rules pass over in silence."""
    scans, marked = set(truth.case_ids), Counter(marks.case_ids)
    unknown = sorted(set(marked) - scans)
    if unknown and len(unknown) == len(marked):
        names = first_few(unknown)
        text = f"none of the marks' {len(unknown)} series ({names}) is one of the {len(scans)} of {truth.name}."
        raise DataError("predictions.no_match", text, remedy="Give the annotations of the same scans.")
    notices = []
    if unknown:
        number = sum(marked[case_id] for case_id in unknown)
        notices.append(
            f"{number} marks of {len(unknown)} series that do not count are left out: {first_few(unknown)}"
        )
    if silent := sorted(scans - set(marked)):
        notices.append(f"{len(silent)} scans have no mark and count as they are: {first_few(silent)}")
    if many := sorted(case_id for case_id in scans & set(marked) if marked[case_id] > MAX_MARKS):
        notices.append(
            f"{len(many)} scans have more than {MAX_MARKS} marks, of which the best count: {first_few(many)}"
        )
    return tuple(notices)


def _evaluation(
    outcome: JudgedMarks, curve: Froc, *, name: str, truth: str, notices: tuple[str, ...]
) -> Luna16Evaluation:
    bands = bootstrap(outcome, rng=np.random.default_rng(SEED), num=NUM_REPLICATES, rates=DRAWN_RATES)
    low, high = band(bands.at_rates.T)
    cpm_low, cpm_high = band(bands.cpm[:, None])[:, 0].tolist()
    scores = np.where(np.isfinite(curve.thresholds), curve.thresholds, np.nan).tolist()
    return Luna16Evaluation(
        answers=name,
        truth=truth,
        scans=len(outcome.nodules),
        max_marks_per_scan=MAX_MARKS,
        counts=_counts(outcome),
        fp_per_scan=tuple(RATES.tolist()),
        sensitivity=tuple(curve.at_rates.tolist()),
        cpm=curve.cpm,
        sensitivity_interval=tuple(zip(low.tolist(), high.tolist(), strict=True)),
        cpm_interval=(cpm_low, cpm_high),
        bootstrap=Bootstrap(replicates=NUM_REPLICATES, seed=SEED, confidence=CONFIDENCE),
        curve=Line(
            x=tuple(bands.rates.tolist()),
            y=tuple(bands.mean.tolist()),
            low=tuple(bands.low.tolist()),
            high=tuple(bands.high.tolist()),
        ),
        corners=tuple(zip(curve.false_per_scan.tolist(), curve.sensitivity.tolist(), scores, strict=True)),
        notices=notices,
    )


def _counts(outcome: JudgedMarks) -> dict[str, float]:
    nodules = int(outcome.nodules.sum())
    return {
        "True positives": outcome.num_found,
        "False positives": outcome.num_false,
        "False negatives": nodules - outcome.num_found,
        "True negatives": 0,
        "Total number of candidates": outcome.num_marks,
        "Total number of nodules": nodules,
        "Ignored candidates on excluded nodules": outcome.num_ignored,
        "Ignored candidates which were double detections on a nodule": outcome.num_doubles,
        "Sensitivity": outcome.num_found / nodules if nodules else float("nan"),
        "Average number of candidates per scan": outcome.num_marks / len(outcome.nodules),
    }


def _analysis(result: Luna16Evaluation) -> str:
    line = "*" * 60
    fractions = ("Sensitivity", "Average number of candidates per scan")
    counts = [
        f"    {name}: {value:.9f}" if name in fractions else f"    {name}: {value:.0f}"
        for name, value in result.counts.items()
    ]
    head = ["", line, f"CAD Analysis: {result.answers}", line, "", "Candidate detection results:"]
    return "\n".join([*head, *counts]) + "\n"


def _samples(outcome: JudgedMarks) -> str:
    """One line a nodule and a false mark: 1 or 0, and the score; a missed nodule has the script's least score."""
    rows = [f"{int(hit)},{score:.9f}" for hit, score in zip(outcome.is_hit, outcome.scores, strict=True)]
    rows += ["1,-1000000000.000000000"] * int(np.isnan(outcome.best).sum())
    return "".join(f"{row}\n" for row in rows)


def _missed(outcome: JudgedMarks, truth: Luna16Truth) -> str:
    numbers = {case_id: index for index, case_id in enumerate(truth.case_ids)}
    nodules = _nodules(truth.included, numbers)
    rows = [
        f"{truth.case_ids[nodules.scans[i]]},{','.join(map(str, nodules.centres_mm[i].tolist()))},"
        f"{nodules.diameters_mm[i]:.9f}"
        for i in np.flatnonzero(np.isnan(outcome.best))
    ]
    return "".join(f"{row}\n" for row in ["seriesuid,coordX,coordY,coordZ,diameter_mm", *rows])
