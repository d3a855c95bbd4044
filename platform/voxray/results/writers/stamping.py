"""What all DICOM objects of an answer share: who made it, UIDs that follow from the answer, and how it is saved.

UIDs are derived (SHA-512 over the weights' digest, the source series, the answer and the form), so that the same
answer has the same UIDs wherever and whenever it is written, and another answer has others.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from voxray import __version__
from voxray.core.detections import Detections
from voxray.core.errors import DataError
from voxray.core.storage import whole
from voxray.core.volume import Volume
from voxray.results.writers.coded_concepts import PRIVATE_SCHEME, shown
from voxray.results.writers.source_series import Source, patient_and_study, read_source

MAKER = "voxray"
_LENGTH = 64
_GOLDEN = 0.618034


@dataclass(frozen=True)
class Algorithm:
    """The model that answered."""

    name: str
    version: str
    sha256: str
    """Of the weights."""
    dataset: str = ""
    """What it learnt from, by name."""

    @property
    def identity(self) -> str:
        """Its version with the beginning of the digest, short enough for a DICOM text."""
        short = f"sha256 {self.sha256[:16]}"
        return f"{self.version[: _LENGTH - len(short) - 2]}, {short}" if self.version else short


def identification(algorithm: Algorithm) -> dict[str, Any]:
    """Name, version and family, as highdicom names them in a Segmentation and in a report."""
    return {
        "name": shown(algorithm.name),
        "version": shown(algorithm.identity),
        "family": codes.DCM.ArtificialIntelligence,
    }


def equipment(algorithm: Algorithm) -> dict[str, Any]:
    """Manufacturer, model, version and serial number, as highdicom names them."""
    return {
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "software_versions": __version__,
        "device_serial_number": algorithm.sha256[:_LENGTH] or "unknown",
    }


def _labels_digest(labels: Volume, classes: Sequence[str]) -> str:
    """The SHA-256 of a label map and what its values mean."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for slab in np.moveaxis(labels.voxels, 2, 0):
        digest.update(np.ascontiguousarray(slab, dtype="<u2").data)
    return digest.hexdigest()


def detections_digest(detections: Detections, classes: Sequence[str]) -> str:
    """The SHA-256 of findings and what their classes mean."""
    digest = hashlib.sha256("\0".join([detections.frame, *classes]).encode())
    for values, kind in ((detections.boxes, "<f4"), (detections.scores, "<f4"), (detections.classes, "<i8")):
        digest.update(np.ascontiguousarray(values, dtype=kind).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Uids:
    """The UIDs of one answer to one series."""

    algorithm: Algorithm
    source: Source
    digest: str
    """Of the answer."""

    def of(self, *what: str) -> str:
        """The UID of a thing of this answer, such as ``"seg", "series"``."""
        return str(
            generate_uid(
                entropy_srcs=[
                    MAKER,
                    __version__,
                    self.algorithm.sha256,
                    self.algorithm.identity,
                    self.source.series_uid,
                    self.digest,
                    *what,
                ]
            )
        )

    def tracking(self, number: int) -> str:
        """Of a finding or a class of the answer, the same in all of its objects."""
        return self.of("tracking", str(number))


def device_uid(algorithm: Algorithm) -> str:
    """Of the model as an observer."""
    return str(generate_uid(entropy_srcs=[MAKER, "device", algorithm.sha256]))


def save(dataset: Dataset, source: Source, path: Path) -> None:
    """Writes the object whole, with the study's own words about the patient and itself."""
    for element in patient_and_study(source):
        dataset[element.tag] = element
    scheme = Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = PRIVATE_SCHEME, f"Names of classes of {MAKER} models"
    dataset.CodingSchemeIdentificationSequence = [scheme]
    with whole(path) as beside:
        dataset.save_as(beside, enforce_file_format=True)


def colour(number: int) -> tuple[int, int, int]:
    """A class's colour in sRGB; neighbours in the list differ."""
    hue = (number * _GOLDEN) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 if number % 2 else 0.8, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def identify_labels(
    labels: Volume,
    source: Sequence[Path],
    form: str,
    *,
    classes: Sequence[str],
    algorithm: Algorithm,
    series_uid: str | None,
) -> tuple[Uids, list[int]]:
    """The UIDs of a label map on the grid of its source series, and the values that it holds."""
    series = read_source(source, labels.grid, series_uid=series_uid)
    present = _present(labels, classes, form)
    return Uids(algorithm, series, _labels_digest(labels, classes)), present


def _present(labels: Volume, classes: Sequence[str], form: str) -> list[int]:
    """The values above 0 that are present, each of which must be a class."""
    counts = np.bincount(labels.voxels.ravel(), minlength=1)
    present = [int(value) for value in np.flatnonzero(counts) if value]
    if present and present[-1] > len(classes):
        raise DataError(
            f"{form}.unknown_label",
            f"the label map holds the value {present[-1]}, and there are {len(classes)} classes.",
            remedy="Give the classes of the model that made the label map.",
        )
    return present


def empty(form: str) -> DataError:
    """The refusal of a form that cannot say that nothing was found."""
    return DataError(
        f"{form}.empty",
        "the label map holds no class, and this form cannot say that nothing was found.",
        remedy="Take the structured report (SR) or NIfTI, which can.",
    )
