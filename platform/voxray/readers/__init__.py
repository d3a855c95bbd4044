"""Readers: scans and label maps from files, checked before a voxel is believed; volumes to NIfTI.

A reader of one format checks a header and gives a `Stored`; `READERS` finds it by the file's suffix. What cannot be
read exactly is refused with a stable code: `README.md` beside this file lists every code and what to do.

Voxels keep the order of the file, axes (x y z); the grid says in LPS mm where they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from voxray.core.errors import DataError
from voxray.core.text import on_disk
from voxray.core.volume import Volume
from voxray.readers import metaimage, nrrd
from voxray.readers.beside import is_bare
from voxray.readers.content import content_of
from voxray.readers.dicom import read_dicom
from voxray.readers.dicom_file import is_dicom
from voxray.readers.dicom_series import find_series, listed_series
from voxray.readers.info import Info, info_of
from voxray.readers.metaimage import read_metaimage
from voxray.readers.nifti import read_nifti
from voxray.readers.nifti_writer import write_nifti
from voxray.readers.nrrd import read_nrrd, segment_names
from voxray.readers.refusals import refusal
from voxray.readers.stored import Stored, hounsfield, labels

Reader = Callable[[Path], Stored]

READERS: dict[str, Reader] = {
    ".nii.gz": read_nifti,
    ".nii": read_nifti,
    ".mhd": read_metaimage,
    ".mha": read_metaimage,
    ".nrrd": read_nrrd,
    ".nhdr": read_nrrd,
    ".dcm": read_dicom,
    ".dicom": read_dicom,
    ".ima": read_dicom,
}
"""By the end of the file's name, in any case. A folder, or a file with DICOM's mark, is DICOM whatever its name."""

_SEGMENTATION = ".seg.nrrd"


def read_volume(path: Path, *, series_uid: str | None = None, accept_values: bool = False) -> Volume:
    """The scan at `path` in int16 HU, in its own orientation; a folder is a DICOM series.

    `series_uid` names the series to read where a folder holds several. Values that can be no Hounsfield units are
    refused (`readers.plausibility`), unless `accept_values`.
    """
    return hounsfield(open_scan(path, series_uid=series_uid), accept_values=accept_values)


def open_scan(path: Path, *, series_uid: str | None = None) -> Stored:
    """The checked headers of the scan at `path`, with its voxels behind them; `hounsfield` reads those."""
    path = on_disk(path)
    if path.name.lower().endswith(_SEGMENTATION):
        raise refusal(
            "path.label_map",
            path,
            "is a segmentation, not an image.",
            remedy="Give the image that it was drawn on.",
        )
    return _stored(path, series_uid)


def read_label_map(path: Path) -> Volume:
    """The label map at `path` as uint8, or as uint16 where a label is above 255."""
    path = on_disk(path)
    if _is_dicom(path):
        raise refusal(
            "path.not_label_map",
            path,
            "is DICOM; label maps are read from NIfTI, MetaImage and NRRD.",
            remedy="Convert a DICOM SEG with dcmqi (segimage2itkimage) and give the result.",
        )
    return labels(_stored(path, None))


def label_names(path: Path) -> dict[int, str]:
    """Label value -> name, where the file of a label map declares it, as 3D Slicer's ``.seg.nrrd`` does."""
    return segment_names(path) if READERS.get(path.suffix.lower()) is read_nrrd and path.is_file() else {}


def describe(path: Path, *, pixels: bool = False, series_uid: str | None = None) -> Info:
    """What the scan at `path` is, from its headers; with `pixels` its voxels are read too, and their range given."""
    return info_of(_stored(on_disk(path), series_uid), pixels=pixels)


def volume_files(path: Path, *, series_uid: str | None = None) -> tuple[Path, ...]:
    """Every file that the scan or label map at `path` consists of, as its reader finds them.

    A header's data file, whatever its name; of a folder the slices of the one series, not what lies beside them.
    """
    path = on_disk(path)
    return _stored(path, series_uid).files or (path,)


def data_file_name(header: Path) -> str | None:
    """The name of the file beside it that holds a header's voxels; None where there is none, or it cannot be read."""
    try:
        reader, name = _suffix_reader(header), None
        if reader is read_metaimage:
            name = metaimage.named_data(header)
        elif reader is read_nrrd:
            name = nrrd.named_data(header)
    except (DataError, OSError):
        return None
    return name if name is not None and is_bare(name) else None


def is_file_name(name: str) -> bool:
    """Whether a name ends as that of a file of a known format."""
    return _suffix_reader(Path(name)) is not None


def series_in(path: Path) -> dict[str, str]:
    """The UIDs of the CT series of a file or folder, each with words that tell it apart; none where it holds none."""
    path = on_disk(path)
    if not _is_dicom(path):
        return {}
    try:
        return listed_series(find_series(path).series)
    except DataError:
        return {}


def volume_content(path: Path, *, series_uid: str | None = None) -> str:
    """The content of the scan or label map at `path`: `content_of` its files, headers and voxels."""
    files = volume_files(path, series_uid=series_uid)
    try:
        return content_of(files)
    except OSError as error:
        raise _unreadable(path, error) from None


def _stored(path: Path, series_uid: str | None) -> Stored:
    try:
        if _is_dicom(path):
            return read_dicom(path, series_uid)
        if series_uid is not None:
            raise refusal(
                "dicom.no_such_series",
                path,
                f"is no DICOM, so that it holds no series {series_uid}.",
                remedy="Name no series of it.",
            )
        return _reader(path)(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> Exception:
    return refusal(
        "path.unreadable",
        path,
        f"cannot be read ({error.strerror or error}).",
        remedy="Check that the file may be read and that its disk is sound.",
    )


def _is_dicom(path: Path) -> bool:
    if not path.exists():
        raise refusal("path.missing", path, "does not exist.", remedy="Give the path of a scan.")
    return path.is_dir() or (_suffix_reader(path) is None and is_dicom(path)) or _suffix_reader(path) is read_dicom


def _suffix_reader(path: Path) -> Reader | None:
    name = path.name.lower()
    return next((reader for suffix, reader in READERS.items() if name.endswith(suffix)), None)


def _reader(path: Path) -> Reader:
    found = _suffix_reader(path)
    if found is None:
        raise refusal(
            "path.unknown_format",
            path,
            f"is no known format; file names end in {', '.join(READERS)}, other files must be DICOM.",
            remedy="Convert it to NIfTI (.nii.gz).",
        )
    return found


__all__ = [
    "READERS",
    "Info",
    "Stored",
    "content_of",
    "data_file_name",
    "describe",
    "hounsfield",
    "is_file_name",
    "label_names",
    "open_scan",
    "read_label_map",
    "read_volume",
    "series_in",
    "volume_content",
    "volume_files",
    "write_nifti",
]
