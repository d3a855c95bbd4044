"""The geometry of a DICOM series: slices put in order along their normal, and the grid that they form.

Positions alone decide the spacing along the normal; Slice Thickness is what a slice averages over, not where the
next one lies. What is no regular, orthogonal stack of slices is refused, never resampled in silence:

* no slice may lie further from its place on a regular grid than `UNEVENNESS` of the spacing;
* none may lie further beside the normal through the first than `DRIFT` of a pixel (a tilted gantry);
* rows and columns must meet at a right angle, to within `ANGLE_TOLERANCE`, and be the same in all slices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from voxray.core.volume import Grid, Vector
from voxray.readers.geometry import check_spacing, grid_of, shape_of
from voxray.readers.refusals import refusal

LACKING = ("dicom.missing_slice", "dicom.uneven_spacing")
"""The refusals that a slice which was left out may be the reason of."""
UNEVENNESS = 0.1
DRIFT = 0.25
ANGLE_TOLERANCE = 1e-3
_SAME_PLACE_MM = 1e-3
_SPACING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class DicomFrame:
    """One slice's header: where its pixels are, where it lies in LPS mm, and what its values mean."""

    path: Path
    index: int
    """Its place within the file, from 0."""
    columns: int
    rows: int
    position_mm: Vector
    """The centre of its first pixel."""
    orientation: tuple[float, ...]
    """Six cosines: along a row (x), then down a column (y)."""
    pixel_spacing_mm: tuple[float, float]
    """Between rows (y), then between columns (x), as DICOM has it."""
    thickness_mm: float | None
    slope: float
    intercept: float


def arrange(frames: Sequence[DicomFrame], where: Path) -> tuple[list[DicomFrame], Grid]:
    """The frames in order along their normal (x cross y), and their grid."""
    first = frames[0]
    _check_alike(frames, where)
    axes = _axes(first, where)
    offsets = np.array([frame.position_mm for frame in frames]) - first.position_mm
    along = offsets @ axes[:, 2]
    order = np.argsort(along, kind="stable")
    ordered = [frames[int(index)] for index in order]
    shape = shape_of((first.columns, first.rows, len(frames)), where)
    spacing_y, spacing_x = first.pixel_spacing_mm
    check_spacing((spacing_x, spacing_y), where)
    if len(frames) == 1:
        spacing_z = _thickness(first, where)
    else:
        spacing_z = _spacing(along[order], ordered, where)
        _check_drift(offsets[order] @ axes[:, :2], along[order], min(spacing_x, spacing_y), where)
    affine = np.eye(4)
    affine[:3, :3] = axes * [spacing_x, spacing_y, spacing_z]
    affine[:3, 3] = ordered[0].position_mm
    return ordered, grid_of(affine, shape, where)


def _check_alike(frames: Sequence[DicomFrame], where: Path) -> None:
    """Refuses slices that differ in size, pixel spacing or orientation."""
    first = frames[0]
    for frame in frames[1:]:
        if (frame.columns, frame.rows) != (first.columns, first.rows):
            raise refusal(
                "dicom.inconsistent_size",
                where,
                f"has slices of {first.columns} x {first.rows} and of {frame.columns} x {frame.rows} pixels "
                f"in one series ({first.path.name}, {frame.path.name}).",
                remedy="Keep the slices of one reconstruction in the folder.",
            )
        if not np.allclose(frame.pixel_spacing_mm, first.pixel_spacing_mm, rtol=_SPACING_TOLERANCE):
            raise refusal(
                "dicom.inconsistent_spacing",
                where,
                f"has pixel spacings {first.pixel_spacing_mm} and {frame.pixel_spacing_mm} mm "
                f"in one series ({first.path.name}, {frame.path.name}).",
                remedy="Keep the slices of one reconstruction in the folder.",
            )
        if not np.allclose(frame.orientation, first.orientation, atol=ANGLE_TOLERANCE):
            raise refusal(
                "dicom.inconsistent_orientation",
                where,
                f"has slices that face different ways in one series ({first.path.name}, {frame.path.name}).",
                remedy="Keep the slices of one reconstruction in the folder; take localizers out.",
            )


def _axes(frame: DicomFrame, where: Path) -> Float[np.ndarray, "3 3"]:
    """The unit vectors of x, y and the normal, as columns; y is made exactly perpendicular to x."""
    x, y = np.asarray(frame.orientation[:3]), np.asarray(frame.orientation[3:])
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    if abs(float(x @ y)) > ANGLE_TOLERANCE or not np.allclose(lengths, 1.0, atol=10 * ANGLE_TOLERANCE):
        raise refusal(
            "dicom.bad_orientation",
            where,
            f"has the image orientation {[round(value, 5) for value in frame.orientation]}, which is no pair of "
            f"perpendicular unit vectors ({frame.path.name}).",
            remedy="Export the series again from the scanner or archive.",
        )
    x = x / lengths[0]
    y = y - x * (x @ y)
    y = y / np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)], axis=1)


def _thickness(frame: DicomFrame, where: Path) -> float:
    if frame.thickness_mm is None or frame.thickness_mm <= 0:
        raise refusal(
            "dicom.no_thickness",
            where,
            "is a single slice without a slice thickness, so that its extent is not known.",
            remedy="Give the folder of the whole series.",
        )
    return frame.thickness_mm


def _spacing(along: Float[np.ndarray, " n"], frames: Sequence[DicomFrame], where: Path) -> float:
    """The spacing of a regular stack; `along` holds the ascending places on the normal, in mm."""
    steps = np.diff(along)
    if (steps < _SAME_PLACE_MM).any():
        raise _doubled(along, frames, where)
    spacing = float(along[-1] - along[0]) / len(steps)
    wrong = np.abs(along - along[0] - spacing * np.arange(len(along))) > UNEVENNESS * spacing
    if not wrong.any():
        return spacing
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    whole = np.rint(steps / usual)
    gaps = np.flatnonzero(whole > 1)
    if len(gaps) and len(gaps) <= max(1, len(steps) // 4) and np.allclose(steps / usual, whole, atol=2 * UNEVENNESS):
        gap = int(gaps[0])
        missing = int((whole - 1).sum())
        raise refusal(
            "dicom.missing_slice",
            where,
            f"lacks {missing} of {len(frames) + missing} slices: the first gap is {steps[gap]:.3f} mm between "
            f"{frames[gap].path.name} and {frames[gap + 1].path.name}, where slices are {usual:.3f} mm apart.",
            remedy="Copy the whole series again, or give a part of it that has no gap.",
        )
    raise refusal(
        "dicom.uneven_spacing",
        where,
        f"has unevenly spaced slices, {steps.min():.3f} to {steps.max():.3f} mm apart; no slice may be off a "
        f"regular grid by more than {UNEVENNESS:.0%} of the spacing.",
        remedy="Resample the series to even spacing, for instance with dcm2niix (its *_Eq* output), and give that.",
    )


def _doubled(along: Float[np.ndarray, " n"], frames: Sequence[DicomFrame], where: Path) -> Exception:
    place = np.concatenate([[0], np.cumsum(np.diff(along) >= _SAME_PLACE_MM)])
    times = set(Counter(place.tolist()).values())
    num_places = int(place[-1]) + 1
    if len(times) == 1:
        return refusal(
            "dicom.four_d",
            where,
            f"has {times.pop()} slices at each of {num_places} places: a 4D series (phases, time points), or copies.",
            remedy="Put the slices of one phase into a folder of their own and give that.",
        )
    second = int(np.flatnonzero(np.diff(place) == 0)[0])
    return refusal(
        "dicom.doubled_position",
        where,
        f"has {len(frames)} slices at {num_places} places: {frames[second].path.name} and "
        f"{frames[second + 1].path.name} lie at the same one.",
        remedy="Remove the copies, or put each reconstruction into a folder of its own.",
    )


def _check_drift(
    beside: Float[np.ndarray, "n 2"], along: Float[np.ndarray, " n"], pixel_mm: float, where: Path
) -> None:
    """Refuses slices that shift sideways against the normal; `beside` and `along` are in mm."""
    shift = np.linalg.norm(beside - beside[0], axis=1)
    if shift.max() <= DRIFT * pixel_mm:
        return
    angle = math.degrees(math.atan2(float(shift[-1]), float(along[-1] - along[0])))
    raise refusal(
        "dicom.gantry_tilt",
        where,
        f"has slices that shift sideways by up to {shift.max():.2f} mm against their normal, {angle:.1f} degrees "
        "from first to last (a tilted gantry).",
        remedy="Shear it back to an orthogonal grid, for instance with dcm2niix (its *_Tilt* output), and give that.",
    )
