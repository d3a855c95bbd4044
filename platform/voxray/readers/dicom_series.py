"""Which files of a folder are the one CT series that is meant, and what lies beside them.

Left out with a warning: files that are not DICOM, a DICOMDIR, objects of other modalities (SEG, SR, RTSTRUCT,
presentation states), localizers, and images of modality CT that say nothing of their place in the patient (screen
saves, dose reports). Of several CT series one must be named by its UID.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxray.core.errors import DataError
from voxray.readers.dicom_file import is_dicom, read_header
from voxray.readers.dicom_frames import TAGS, Instance, has_place, is_localizer
from voxray.readers.dicom_pixels import DEFLATED
from voxray.readers.refusals import refusal

_SUFFIXES = (".dcm", ".dicom", ".ima")
_SERIES_LISTED = 8
_FILES_LISTED = 5


@dataclass(frozen=True)
class Found:
    """What a file or folder holds: the CT images, by series in the order of their files, and what was left out."""

    series: Mapping[str, Sequence[Instance]]
    ignored: Sequence[str]


def find_series(path: Path) -> Found:
    """The CT series of a file, or of a folder's own files; none at all is refused."""
    instances, ignored = _in_folder(path) if path.is_dir() else ([_instance(path)], [])
    ignored += [f"{one.path.name} (a DICOM directory) ignored" for one in instances if one.is_directory]
    others = Counter(one.modality or "unknown" for one in instances if one.modality != "CT" and not one.is_directory)
    ignored += [f"{count} objects of modality {name} ignored" for name, count in sorted(others.items())]
    of_ct = [one for one in instances if one.modality == "CT"]
    images = [one for one in of_ct if not is_localizer(one)]
    if len(images) < len(of_ct):
        ignored.append(f"{len(of_ct) - len(images)} localizer images ignored")
    if not images:
        raise _no_images(path, others, len(of_ct))
    placed, unplaced = _by_place(images)
    if placed and unplaced:
        ignored.append(
            "ignored, as nothing says where they lie in the patient (screen saves, dose reports): "
            f"{_listed_names([one.path.name for one in unplaced])}"
        )
    series: dict[str, list[Instance]] = defaultdict(list)
    for image in placed or images:
        series[image.series_uid].append(image)
    return Found(series, ignored)


def other_modalities(folder: Path) -> tuple[str, ...]:
    """The modalities of a folder of DICOM files that are all of others than CT; empty where one is CT or unknown."""
    found: set[str] = set()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or not is_dicom(path):
            continue
        try:
            modality = _instance(path).modality
        except DataError:
            return ()
        if modality in ("CT", ""):
            return ()
        found.add(modality)
    return tuple(sorted(found))


def one_series(path: Path, series_uid: str | None) -> tuple[Sequence[Instance], list[str]]:
    """The instances of the one CT series that is meant, and what was left out beside it."""
    found = find_series(path)
    ignored, series = list(found.ignored), found.series
    if series_uid is None and len(series) == 1:
        return next(iter(series.values())), ignored
    if series_uid is not None and series_uid in series:
        ignored += [f"series {uid} left out ({len(rest)} files)" for uid, rest in series.items() if uid != series_uid]
        return series[series_uid], ignored
    if series_uid is not None:
        raise refusal(
            "dicom.no_such_series",
            path,
            f"holds no CT series {series_uid}; it holds {_listed(series)}.",
            remedy="Name one of these.",
        )
    raise refusal(
        "dicom.several_series",
        path,
        f"holds {len(series)} CT series: {_listed(series)}.",
        remedy="Name the one to read (info and predict: --series UID), or give each series a folder of its own.",
    )


def _in_folder(folder: Path) -> tuple[list[Instance], list[str]]:
    """The DICOM files of a folder, and what else lies there."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in inside if path.is_file()]
    folders = [path for path in inside if path.is_dir()]
    dicom = [path for path in files if is_dicom(path)]
    others = sorted(set(files) - set(dicom))
    for path in others:
        if path.name.lower().endswith(_SUFFIXES):
            raise _not_dicom(path)
    instances = [_instance(path) for path in dicom]
    if all(one.is_directory for one in instances):
        raise _no_dicom(folder, folders)
    ignored = [f"not DICOM, ignored: {_listed_names([path.name for path in others])}"] if others else []
    if folders:
        ignored.append(f"folders within are not read: {_listed_names([path.name for path in folders])}")
    return instances, ignored


def _no_dicom(folder: Path, folders: Sequence[Path]) -> Exception:
    holding = [path for path in folders if any(is_dicom(file) for file in path.iterdir() if file.is_file())]
    if holding:
        return refusal(
            "dicom.subfolders",
            folder,
            f"holds no DICOM image itself; its folders do ({', '.join(path.name for path in holding[:5])}).",
            remedy="Give the folder of one series.",
        )
    return refusal("dicom.no_files", folder, "holds no DICOM file.", remedy="Give the folder of one series.")


def _not_dicom(path: Path) -> Exception:
    return refusal(
        "dicom.not_dicom",
        path,
        "is not DICOM: it has no mark (DICM after 128 bytes), and does not start with DICOM elements either.",
        remedy="Export it again as a DICOM Part 10 file, or take it out of the folder.",
    )


def _instance(path: Path) -> Instance:
    """A file's header, without its pixels."""
    if not is_dicom(path):
        raise _not_dicom(path)
    try:
        header = read_header(path, TAGS)
    except Exception as error:
        # pydicom raises anything that damaged bytes happen to cause.
        raise refusal(
            "dicom.unreadable",
            path,
            f"has a header that cannot be read ({type(error).__name__}: {str(error)[:200]}).",
            remedy="Copy or export the file again.",
        ) from None
    # A deflated header is unpacked in memory, so the place in the file tells nothing.
    left = None if header.transfer_syntax == DEFLATED else header.num_bytes_left
    return Instance(path, header.dataset, header.transfer_syntax, left, header.is_directory)


def listed_series(series: Mapping[str, Sequence[Instance]]) -> dict[str, str]:
    """The UID of each series -> the UID with what helps to choose one."""
    texts = {}
    for uid, rest in series.items():
        description = f", “{rest[0].series_description}”" if rest[0].series_description else ""
        texts[uid] = f"{uid} ({len(rest)} files, number {rest[0].series_number}{description})"
    return texts


def _listed(series: Mapping[str, Sequence[Instance]]) -> str:
    """The first few series."""
    texts = list(listed_series(series).values())
    more = len(texts) - _SERIES_LISTED
    return "; ".join([*texts[:_SERIES_LISTED], *([f"and {more} more"] if more > 0 else [])])


def _by_place(images: Sequence[Instance]) -> tuple[list[Instance], list[Instance]]:
    """Those that say where they lie, and the others."""
    placed: list[Instance] = []
    unplaced: list[Instance] = []
    for one in images:
        (placed if has_place(one) else unplaced).append(one)
    return placed, unplaced


def _listed_names(names: Sequence[str]) -> str:
    more = len(names) - _FILES_LISTED
    return ", ".join([*names[:_FILES_LISTED], *([f"and {more} more"] if more > 0 else [])])


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
        f"is of modality {', '.join(sorted(others)) or 'none (a DICOM directory)'}; only CT has Hounsfield units.",
        remedy="Give a CT series.",
    )
