"""Images and labels as MONAI Label's clients know them: an image is a study, labels lie beside it in its folder."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxray.core.errors import DataError
from voxray.core.storage import whole
from voxray.core.volume import Grid, Volume
from voxray.readers import write_nifti
from voxray.serving.errors import ProblemError
from voxray.serving.http.aliases import Aliases
from voxray.serving.intake.study import series_handle
from voxray.serving.jobs.service import Service, study_of
from voxray.serving.messages import DicomwebSource, Study

LABELS = "labels"
FINAL = "final"
"""The tag of a label that a person has approved."""
_PARAMS = "params.json"
_LABEL = "label"
_TAG = re.compile(r"^[A-Za-z0-9_-]{1,64}$")
_SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha", ".mrk.json", ".json", ".bin")
_BARE = ".bin"
"""OHIF sends the voxels alone."""
_ID_LENGTH = 512
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class Images:
    """What an owner's clients may ask for."""

    service: Service
    aliases: Aliases

    async def find(self, owner: str, image: str) -> Study:
        """The study that a client means: by its own name for it, by ours, or by its DICOM series."""
        if not 0 < len(image) <= _ID_LENGTH:
            raise _unknown()
        named = await asyncio.to_thread(self.aliases.study, owner, image)
        try:
            return await self.service.study(owner, named or image)
        except ProblemError as problem:
            if problem.status != 404:
                raise
        handle = series_handle(image)
        for row in reversed(await asyncio.to_thread(self.service.store.studies, owner)):
            if json.loads(row.info).get("series") == handle:
                return study_of(row)
        raise _unknown()

    async def find_or_fetch(self, owner: str, image: str) -> Study:
        """The same; a series that is not here is fetched from the archive, where one is named."""
        try:
            return await self.find(owner, image)
        except ProblemError:
            archive = self.service.config.dicomweb.archive
            if not archive or not _UID.fullmatch(image):
                raise
        try:
            return await self.service.fetch_study(owner, DicomwebSource(url=archive, series_uid=image))
        except DataError as error:
            if error.code == "dicomweb.not_found":
                raise _unknown() from None
            raise

    async def name(self, owner: str, image: str, study: Study) -> None:
        """From now on the client's name stands for the study."""
        if not 0 < len(image) <= _ID_LENGTH:
            raise ProblemError(
                422, "image.name", "The image's id is empty or too long.",
                remedy=f"Give it 1 to {_ID_LENGTH} characters.",
            )  # fmt: skip
        await asyncio.to_thread(self.aliases.give, owner, image, study.study_id)

    async def all(self, owner: str) -> dict[Study, dict[str, Path]]:
        """Every study of the owner, the oldest first, with its labels by tag."""
        rows = await asyncio.to_thread(self.service.store.studies, owner)
        return await asyncio.to_thread(lambda: {study: self.labels(study) for study in map(study_of, rows)})

    def labels(self, study: Study) -> dict[str, Path]:
        """Tag -> the file of the label."""
        folder = self._labels(study)
        found = sorted(folder.glob(f"*/{_LABEL}.*")) if folder.exists() else []
        return {path.parent.name: path for path in found}

    def params(self, label: Path) -> dict[str, Any]:
        """What the client said of a label."""
        path = label.with_name(_PARAMS)
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    async def save(
        self, study: Study, tag: str, *, name: str, chunks: AsyncIterator[bytes], params: Mapping[str, Any]
    ) -> None:
        """Keeps what a client drew; an earlier label of the tag goes."""
        folder = self._labels(study) / _checked(tag)
        suffix = next((end for end in _SUFFIXES if name.lower().endswith(end)), None)
        if suffix is None:
            raise ProblemError(
                415, "label.unknown_format", "The label's file name says no known format.",
                remedy=f"Known are: {', '.join(_SUFFIXES)}.",
            )  # fmt: skip
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        with whole(folder / f"{_LABEL}{suffix}") as beside:
            await self._receive(chunks, beside)
            path = folder / f"{_LABEL}{suffix}"
            if suffix == _BARE:
                await asyncio.to_thread(_with_grid, beside, study)
        if suffix == _BARE:
            path = path.replace(folder / f"{_LABEL}.nii.gz")
        for other in folder.glob(f"{_LABEL}.*"):
            if other != path:
                other.unlink(missing_ok=True)
        await self.describe(study, tag, params)

    async def describe(self, study: Study, tag: str, params: Mapping[str, Any]) -> None:
        """Writes down beside a label what its client says of it."""
        with whole(self._labels(study) / _checked(tag) / _PARAMS) as beside:
            await asyncio.to_thread(beside.write_text, json.dumps(dict(params)))

    async def label(self, study: Study, tag: str) -> Path:
        """The label of a tag."""
        found = (await asyncio.to_thread(self.labels, study)).get(_checked(tag))
        if found is None:
            raise ProblemError(404, "label.unknown", "The image has no such label.", remedy="Submit one first.")
        return found

    async def forget(self, study: Study, tag: str) -> None:
        """Removes a label."""
        await asyncio.to_thread(shutil.rmtree, (await self.label(study, tag)).parent, ignore_errors=True)

    def _labels(self, study: Study) -> Path:
        return self.service.places.study(study.study_id) / LABELS

    async def _receive(self, chunks: AsyncIterator[bytes], path: Path) -> None:
        limit, total = self.service.config.limits.upload_bytes, 0
        with path.open("wb") as file:
            async for chunk in chunks:
                total += len(chunk)
                if total > limit:
                    raise ProblemError(
                        413, "upload.too_large", f"The label has more than {limit:,} bytes.", remedy="Send it packed."
                    )
                await asyncio.to_thread(file.write, chunk)
        if total == 0:
            raise ProblemError(422, "upload.empty", "The label holds no bytes.", remedy="Send the label's file.")


def _with_grid(path: Path, study: Study) -> None:
    """Bare voxels (x running fastest) become NIfTI on the scan's own grid, in place."""
    grid = Grid(study.shape, study.spacing_mm, study.origin_mm, study.direction)
    size, count = path.stat().st_size, int(np.prod(study.shape))
    kinds: dict[int, np.dtype[Any]] = {count: np.dtype(np.uint8), 2 * count: np.dtype("<u2")}
    if size not in kinds:
        raise DataError(
            "label.wrong_size",
            f"The label has {size} bytes, the scan {count} voxels.",
            remedy="Send a byte or two for each voxel of the scan, x running fastest.",
        )
    voxels = np.fromfile(path, kinds[size]).reshape(study.shape, order="F")
    written = path.with_name(f"{path.name}.nii.gz")
    write_nifti(Volume(voxels, grid), written)
    written.replace(path)


def _checked(tag: str) -> str:
    if not _TAG.match(tag):
        raise ProblemError(
            422, "label.tag", "The label's tag cannot be used.", remedy="It has 1 to 64 letters, digits, - _."
        )
    return tag


def _unknown() -> ProblemError:
    return ProblemError(
        404, "image.unknown", "There is no such image.",
        remedy="It may have expired: PUT it to /datastore/?image=ID, or fetch its series with POST /v1/studies.",
    )  # fmt: skip
