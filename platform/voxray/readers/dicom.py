"""DICOM: a file, or the folder of a series, as a checked `Stored`; headers first, pixels only when all of them agree.

A folder is one scan: its own files, not those of folders within it. Objects beside the images (SEG, SR, RTSTRUCT,
presentation states, a DICOMDIR), images of other modalities and localizers are no part of the volume; they are left
out with a warning. Two CT series are refused until one is named by its UID.
"""

from __future__ import annotations

import warnings as python_warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pydicom

from voxray.readers.dicom_frames import TAGS, Instance, frames_of, is_localizer, meaning_warnings
from voxray.readers.dicom_pixels import DEFLATED, decode
from voxray.readers.dicom_slices import Frame, arrange
from voxray.readers.refusals import one_line, refusal
from voxray.readers.stored import Slice, Stored

_SUFFIXES = (".dcm", ".dicom", ".ima")
_SERIES_LISTED = 8
_AGAIN = "Copy or export the file again."


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark after its preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: Path, series_uid: str | None = None) -> Stored:
    """The checked headers of one CT series, with its pixels behind them."""
    found = _in_folder(path) if path.is_dir() else _Found([_instance(path)], [])
    instances, ignored = _one_series(found, path, series_uid)
    frames, grid = arrange([frame for instance in instances for frame in frames_of(instance)], path)
    return Stored(
        path=path,
        format="DICOM series" if len(instances) > 1 else "DICOM",
        grid=grid,
        dtype=instances[0].dtype,
        slices=partial(_slices, frames, {instance.path: instance.transfer_syntax for instance in instances}),
        modality="CT",
        series_uid=instances[0].series_uid,
        num_files=len(instances),
        warnings=(
            *found.ignored,
            *ignored,
            *meaning_warnings(instances),
            *_thickness_warnings(frames, grid.spacing_mm[2]),
        ),
    )


@dataclass(frozen=True)
class _Found:
    instances: list[Instance]
    ignored: list[str]


def _in_folder(folder: Path) -> _Found:
    """The DICOM files of a folder, and what else lies there."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in inside if path.is_file()]
    folders = [path for path in inside if path.is_dir()]
    marked = [path for path in files if is_dicom(path)]
    others = [path for path in files if path not in set(marked)]
    for path in others:
        if path.name.lower().endswith(_SUFFIXES):
            raise _not_dicom(path)
    if not marked:
        raise _no_dicom(folder, folders)
    ignored = [f"not DICOM, ignored: {', '.join(path.name for path in others)}"] if others else []
    if folders:
        ignored.append(f"folders within are not read: {', '.join(path.name for path in folders)}")
    return _Found([_instance(path) for path in marked], ignored)


def _no_dicom(folder: Path, folders: Sequence[Path]) -> Exception:
    holding = [path for path in folders if any(is_dicom(file) for file in path.iterdir() if file.is_file())]
    if holding:
        return refusal(
            "dicom.subfolders",
            folder,
            f"holds no DICOM file itself; its folders do ({', '.join(path.name for path in holding[:5])}).",
            remedy="Give the folder of one series.",
        )
    return refusal("dicom.no_files", folder, "holds no DICOM file.", remedy="Give the folder of one series.")


def _not_dicom(path: Path) -> Exception:
    return refusal(
        "dicom.not_dicom",
        path,
        "has no DICOM mark (DICM after 128 bytes).",
        remedy="Export it again as a DICOM Part 10 file, or take it out of the folder.",
    )


def _instance(path: Path) -> Instance:
    """A file's header, without its pixels."""
    if not is_dicom(path):
        raise _not_dicom(path)
    try:
        with python_warnings.catch_warnings(), path.open("rb") as file:
            python_warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS))
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
            # A deflated header is unpacked in memory, so the place in the file tells nothing.
            left = None if syntax == DEFLATED else path.stat().st_size - file.tell()
    except Exception as error:
        # pydicom raises anything that damaged bytes happen to cause.
        raise refusal(
            "dicom.unreadable",
            path,
            f"has a header that cannot be read ({type(error).__name__}: {str(error)[:200]}).",
            remedy=_AGAIN,
        ) from None
    return Instance(path, dataset, syntax, left)


def _one_series(found: _Found, path: Path, series_uid: str | None) -> tuple[list[Instance], list[str]]:
    """The instances of the one CT series that is meant, and what was left out beside it."""
    images = [one for one in found.instances if one.modality == "CT" and not is_localizer(one)]
    others = Counter(one.modality or "unknown" for one in found.instances if one.modality != "CT")
    localizers = sum(one.modality == "CT" and is_localizer(one) for one in found.instances)
    ignored = [f"{count} objects of modality {name} ignored" for name, count in sorted(others.items())]
    if localizers:
        ignored.append(f"{localizers} localizer images ignored")
    if not images:
        raise _no_images(path, others, localizers)
    series: dict[str, list[Instance]] = defaultdict(list)
    for image in images:
        series[image.series_uid].append(image)
    if series_uid is None and len(series) == 1:
        return images, ignored
    if series_uid in series:
        ignored += [f"series {uid} left out ({len(rest)} files)" for uid, rest in series.items() if uid != series_uid]
        return series[series_uid], ignored
    listed = _listed(series)
    if series_uid is not None:
        raise refusal(
            "dicom.no_such_series",
            path,
            f"holds no CT series {series_uid}; it holds {listed}.",
            remedy="Name one of these.",
        )
    raise refusal(
        "dicom.several_series",
        path,
        f"holds {len(series)} CT series: {listed}.",
        remedy="Give each series a folder of its own (in Python, series_uid names the one to read).",
    )


def _listed(series: dict[str, list[Instance]]) -> str:
    """The first few series, with what helps to choose one."""
    texts = [f"{uid} ({len(rest)} files, number {rest[0].series_number})" for uid, rest in series.items()]
    more = len(texts) - _SERIES_LISTED
    return "; ".join([*texts[:_SERIES_LISTED], *([f"and {more} more"] if more > 0 else [])])


def _no_images(path: Path, others: Counter[str], localizers: int) -> Exception:
    if localizers:
        return refusal(
            "dicom.only_localizers",
            path,
            f"holds {localizers} localizer images and no CT slices.",
            remedy="Give the folder of the axial series.",
        )
    return refusal(
        "dicom.not_ct",
        path,
        f"is of modality {', '.join(sorted(others))}; only CT has Hounsfield units.",
        remedy="Give a CT series.",
    )


def _slices(frames: Sequence[Frame], syntaxes: dict[Path, str]) -> Iterator[Slice]:
    """The slices in order; a file with many frames is decoded once as long as its frames follow each other."""
    held: Path | None = None
    pixels = np.zeros((0, 0, 0), np.int16)
    for frame in frames:
        if frame.path != held:
            held, pixels = frame.path, decode(frame.path, syntaxes[frame.path])
        if pixels.shape[1:] != (frame.rows, frame.columns) or frame.index >= len(pixels):
            raise refusal(
                "dicom.bad_pixels",
                frame.path,
                f"decodes to {len(pixels)} frames of {pixels.shape[2]} x {pixels.shape[1]} pixels, not to the "
                f"{frame.columns} x {frame.rows} of its header.",
                remedy=_AGAIN,
            )
        yield Slice(pixels[frame.index], frame.slope, frame.intercept)


def _thickness_warnings(frames: Sequence[Frame], spacing_mm: float) -> list[str]:
    thickness = frames[0].thickness_mm
    if len(frames) == 1:
        return [f"a single slice; its thickness of {spacing_mm:g} mm is taken as the spacing"]
    if thickness and abs(thickness - spacing_mm) > 0.01 * spacing_mm:
        return [one_line(f"slices are {thickness:g} mm thick and {spacing_mm:g} mm apart; the distance counts")]
    return []
