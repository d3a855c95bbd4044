"""Reading: from the files that were received to a checked volume. Runs in the confined process, nowhere else.

All work is done in a folder of its own, which takes its place when it is done: a reading that was killed can be
repeated from what was received.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxray.core.errors import DataError
from voxray.core.storage import sync_all, whole
from voxray.core.volume import Grid, Volume
from voxray.readers import Stored, hounsfield, open_scan, write_nifti
from voxray.serving.intake.arrange import Arranged, arrange
from voxray.serving.intake.identity import series_of
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.sender_names import about, left_out, numbered
from voxray.serving.intake.study import (
    RECEIVED,
    SOURCE,
    STUDY,
    VOLUME,
    WORK,
    StudyInfo,
    read_study,
    series_handle,
    write_study,
)
from voxray.serving.intake.unpack import check_expansion, unpack
from voxray.serving.intake.uploaded_files import UploadedFile, read_list, uploaded_file, write_list
from voxray.serving.intake.wording import for_sender, plain


def read_received(*, folder: str, limits: Mapping[str, Any], series: str | None) -> dict[str, Any]:
    """Reads what was received in a study's folder; the fields of its `StudyInfo`."""
    return take(Path(folder), Limits.model_validate(dict(limits)), series).model_dump(mode="json")


def practise() -> None:
    """Reads a few voxels of nothing, from a folder that goes again."""
    grid = Grid((16, 16, 8), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    with tempfile.TemporaryDirectory(prefix="voxray_") as folder:
        received = Path(folder) / RECEIVED
        received.mkdir()
        scan = received / "scan.nii.gz"
        write_nifti(Volume(np.zeros(grid.shape, np.int16), grid), scan)
        item = uploaded_file(1, scan.name)
        scan.rename(received / item.file)
        write_list(received, [item])
        read_received(folder=folder, limits=Limits().model_dump(), series=None)
    tempfile.tempdir = None


def take(folder: Path, limits: Limits, series: str | None) -> StudyInfo:
    """Unpacks, arranges and reads what was received; what is left, on the disk, is as `study` says."""
    if (folder / STUDY).exists():
        # Read before, by a reader that was killed before it could tidy up.
        shutil.rmtree(folder / RECEIVED, ignore_errors=True)
        sync_all(folder)
        return read_study(folder)
    work = folder / WORK
    for old in (work, folder / SOURCE):
        shutil.rmtree(old, ignore_errors=True)
    for new in (SOURCE, "unpacked", "temporary"):
        (work / new).mkdir(parents=True, mode=0o700)
    # What decoders put down for a moment must go with the folder, also when they are killed.
    tempfile.tempdir = str(work / "temporary")
    items: dict[str, UploadedFile] = {}
    try:
        stored, volume, info = _read(folder, limits, series, items)
    except DataError as error:
        raise about(for_sender(error, work / SOURCE), items) from None
    with whole(folder / VOLUME) as path, path.open("wb") as file:
        np.save(file, volume.hounsfield)
    (work / SOURCE).rename(folder / SOURCE)
    write_study(folder, info, series_uid=stored.series_uid)
    for done in (work, folder / RECEIVED):
        shutil.rmtree(done, ignore_errors=True)
    sync_all(folder)
    return info


def _read(
    folder: Path, limits: Limits, series: str | None, items: dict[str, UploadedFile]
) -> tuple[Stored, Volume, StudyInfo]:
    """Reads; `items` takes up what is known of the files, by the names that they have here."""
    received, work = folder / RECEIVED, folder / WORK
    sent = read_list(received)
    items |= {item.file: item for item in sent}
    found = unpack(sent, received, work / "unpacked", limits, items)
    arranged = arrange(found, (work / "unpacked", received), work / SOURCE)
    items |= arranged.names
    uid = series_of(sorted((work / SOURCE).iterdir()), series) if arranged.is_dicom else None
    try:
        stored = open_scan(arranged.path, series_uid=uid)
    except DataError as error:
        raise left_out(error, arranged.left_out) from None
    _check_size(stored, work / SOURCE, limits)
    volume = hounsfield(stored, accept_values=limits.accept_values)
    warnings = [numbered(plain(warning, work / SOURCE), items) for warning in volume.warnings]
    return stored, volume, _info(stored, warnings, arranged)


def _check_size(stored: Stored, source: Path, limits: Limits) -> None:
    """Refuses a volume for what its header promises, before a voxel is read."""
    x, y, z = stored.grid.shape
    if x * y * z > limits.voxels:
        raise DataError(
            "upload.too_many_voxels",
            f"The scan has {x} x {y} x {z} voxels; at most {limits.voxels} are allowed.",
            remedy="Crop or resample the scan.",
        )
    packed = sum(path.stat().st_size for path in source.iterdir())
    promised = x * y * z * np.dtype(stored.dtype).itemsize
    if promised > limits.expansion_free_bytes:
        # A volume within the limit of voxels may be stored in wide numbers, so that only the ratio counts.
        check_expansion(packed, promised, limits.model_copy(update={"expanded_bytes": promised}))


def _info(stored: Stored, warnings: Sequence[str], arranged: Arranged) -> StudyInfo:
    grid, num_left_out = stored.grid, len(arranged.left_out)
    return StudyInfo(
        format=stored.format,
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        origin_mm=grid.origin_mm,
        direction=grid.direction,
        orientation=grid.orientation,
        num_files=stored.num_files,
        modality=stored.modality,
        is_dicom=arranged.is_dicom,
        series=series_handle(stored.series_uid) if stored.series_uid else None,
        warnings=(
            *warnings,
            *([f"{num_left_out} files that are no part of the scan were left out"] if num_left_out else []),
        ),
    )
