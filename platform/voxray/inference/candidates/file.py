"""What a network answered before it was merged, one Parquet file a case: merges are tried without the network.

Detection: every candidate with its window, network and mirror, in edge voxels of the recipe's grid. Segmentation: the
blended probabilities of chosen classes in 255ths, on the recipe's grid, cropped to where any of them is above a
floor, with the largest of all other classes beside them; blosc2-compressed, as in a store. Both grids and, where it
is known, the truth lie beside them, so an evaluation needs no scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor

from voxray.core.answer_json import ModelStamp
from voxray.core.case import pack, unpack
from voxray.core.config import Config
from voxray.core.detections import Detections
from voxray.core.errors import DataError
from voxray.core.recipe import DetectionMerge, SegmentationMerge
from voxray.core.storage import Place
from voxray.core.volume import Grid, Shape, Volume
from voxray.tasks.candidates import Placed
from voxray.tasks.labels import labels_above, tidy
from voxray.tasks.merging import merge_candidates
from voxray.tasks.recorder import WHOLE
from voxray.tasks.restore import bytes_on, detections_on
from voxray.tasks.segmentation import selected, thresholds_of

FLOOR = 0.01
"""Probabilities of the recorded classes that are nowhere higher are cut away."""
REST, TRUTH = "rest", "truth"

_HEAD = b"voxray"
_PLANES = 16
_DETECTION = pa.schema(
    [
        *((name, pa.float32()) for name in ("x1", "y1", "z1", "x2", "y2", "z2", "score")),
        *((name, pa.int32()) for name in ("class", "tile", "model", "mirror")),
    ]
)
_SEGMENTATION = pa.schema([("name", pa.string()), ("payload", pa.large_binary())])


class RecordedHeader(Config):
    """What a file says of itself, in its footer."""

    model_config = ConfigDict(populate_by_name=True)

    schema_name: Literal["voxray-candidates/1"] = Field(
        default="voxray-candidates/1", validation_alias="schema", serialization_alias="schema"
    )
    case: str
    patient: str
    scan_sha256: str = ""
    """The content of the scan: `voxray.readers.volume_content`; empty where a shard was answered."""
    shard: str = ""
    """The signature of that shard."""
    truth_sha256: str = ""
    """The content of the truth: `voxray.loading.truth_content`; empty where a shard held it, or there is none."""
    classes: tuple[str, ...]
    """Detection: all classes, by number. Segmentation: those whose probabilities are recorded."""
    model: ModelStamp
    grid: dict[str, Any]
    """The recipe's grid over the scan: `Grid.to_dict`."""
    scan_grid: dict[str, Any]
    """The scan's own, to which the answer goes back."""
    window_vox: Shape = (0, 0, 0)
    starts_vox: tuple[Shape, ...] = ()
    """First voxels of the windows; a candidate's `tile` is a row of these."""
    num_models: int = 1
    mirrors: tuple[tuple[int, ...], ...] = ((),)
    """The axes on which the scan was mirrored for each of a network's answers."""
    start_vox: Shape = (0, 0, 0)
    shape_vox: Shape = (0, 0, 0)
    """Segmentation: what of the grid is recorded."""
    truth_boxes: tuple[tuple[float, float, float, float, float, float], ...] | None = None
    """Every object, in edge voxels of `grid`; None where the truth is not known."""
    truth_classes: tuple[int, ...] = ()
    has_truth_labels: bool = False


@dataclass(frozen=True)
class RecordedTruth:
    """What is to be found: objects in edge voxels of the recipe's grid, or labels on the scan's own."""

    boxes: Float64[np.ndarray, "n 6"] = field(default_factory=lambda: np.zeros((0, 6)))
    classes: Int64[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    labels: UInt8[np.ndarray, "x y z"] | None = None
    """Of the recorded classes: k + 1 is ``classes[k]`` of the file."""
    sha256: str = ""
    """The content that it was made from: `RecordedHeader.truth_sha256`."""


@dataclass(frozen=True)
class RecordedCase:
    """A case's candidates, or its probabilities, ready to be merged."""

    head: RecordedHeader
    placed: Placed | None = None
    shares: UInt8[np.ndarray, "c x y z"] | None = None
    """The rest first, then `head.classes`, within the crop."""
    truth: RecordedTruth | None = None

    @property
    def grid(self) -> Grid:
        """The recipe's grid."""
        return Grid.from_dict(self.head.grid)

    @property
    def scan_grid(self) -> Grid:
        """The scan's own grid."""
        return Grid.from_dict(self.head.scan_grid)

    def detections(self, how: DetectionMerge) -> Detections:
        """What `how` makes of the candidates, in edge voxels of the scan's own grid."""
        return detections_on(merge_candidates(self.required, self.grid, how), self.grid, self.scan_grid)

    @property
    def required(self) -> Placed:
        """The candidates of a detection."""
        assert self.placed is not None, self.head.case
        return self.placed

    def shares_on_scan(self) -> UInt8[np.ndarray, "c x y z"]:
        """The probabilities on the scan's own grid, interpolated as a prediction's are."""
        assert self.shares is not None, self.head.case
        grid, start, shape = self.grid, self.head.start_vox, self.head.shape_vox
        axis = int(np.argmax(grid.shape))

        def slabs() -> Any:
            for first in range(0, grid.shape[axis], _PLANES):
                yield first, self._slab(axis, first, min(first + _PLANES, grid.shape[axis]), start, shape)

        return bytes_on(slabs(), grid, self.scan_grid, axis=axis)

    def labels(self, how: SegmentationMerge) -> Volume:
        """What `how` makes of the probabilities, on the scan's own grid; label k + 1 is ``head.classes[k]``."""
        grid = self.scan_grid
        return Volume(labels_of_shares(self.shares_on_scan(), grid, self.head.classes, how), grid)

    def _slab(self, axis: int, first: int, last: int, start: Shape, shape: Shape) -> Float[Tensor, "c x y z"]:
        """Planes of the whole grid: where nothing is recorded, the rest is certain."""
        assert self.shares is not None
        sides = [*self.grid.shape]
        sides[axis] = last - first
        slab = torch.zeros((len(self.shares), *sides))
        slab[0] = WHOLE
        low, high = max(first, start[axis]), min(last, start[axis] + shape[axis])
        if low < high:
            to = [slice(a, a + n) for a, n in zip(start, shape, strict=True)]
            of = [slice(None)] * 3
            to[axis], of[axis] = slice(low - first, high - first), slice(low - start[axis], high - start[axis])
            slab[(slice(None), *to)] = torch.from_numpy(self.shares[(slice(None), *of)]).float()
        return slab


def labels_of_shares(
    shares: UInt8[np.ndarray, "c x y z"], grid: Grid, classes: tuple[str, ...], how: SegmentationMerge
) -> UInt8[np.ndarray, "x y z"]:
    """Labels from recorded probabilities (the rest first) on a grid, or a part of it, and tidied up."""
    thresholds = thresholds_of(how, classes) or [None] * len(classes)
    labels = labels_above(torch.from_numpy(shares), thresholds, whole=WHOLE).numpy()
    return tidy(
        labels,
        smallest_vox=how.min_component_mm3 / float(np.prod(grid.spacing_mm)),
        largest_only=selected(how.largest_only, classes, field="merge.largest_only"),
        fill_holes=selected(how.fill_holes, classes, field="merge.fill_holes"),
    )


def file_name(case: str) -> str:
    """The name of a case's file within its folder."""
    return f"{quote(case, safe='')}.parquet"


def write_recorded(folder: Place, recorded: RecordedCase) -> str:
    """Writes the case's file whole, and returns its name."""
    name = file_name(recorded.head.case)
    table = _detection_table(recorded) if recorded.shares is None else _segmentation_table(recorded)
    table = table.replace_schema_metadata({_HEAD: recorded.head.model_dump_json(by_alias=True).encode()})
    with folder.writing(name) as path:
        pq.write_table(table, path, compression="zstd" if recorded.shares is None else "none")
    return name


def read_head(folder: Place, name: str) -> RecordedHeader:
    """What the file says of itself; its payload is not read."""
    with _understood(folder, name):
        return RecordedHeader.model_validate_json(folder.reading(name, pq.read_metadata).metadata[_HEAD])


def read_recorded(folder: Place, name: str) -> RecordedCase:
    """The case of a file that `write_recorded` left; a DataError where it is damaged or something else."""
    with _understood(folder, name):
        table = folder.reading(name, pq.read_table)
        head = RecordedHeader.model_validate_json(table.schema.metadata[_HEAD])
        return _read_detection(head, table) if "score" in table.column_names else _read_segmentation(head, table)


def with_truth(recorded: RecordedCase, truth: RecordedTruth) -> RecordedCase:
    """The same with what is to be found."""
    boxes = tuple(_six(box) for box in truth.boxes)
    update = {
        "truth_boxes": boxes,
        "truth_classes": tuple(truth.classes.tolist()),
        "has_truth_labels": truth.labels is not None,
        "truth_sha256": truth.sha256,
    }
    return replace(recorded, head=recorded.head.model_copy(update=update), truth=truth)


def _detection_table(recorded: RecordedCase) -> pa.Table:
    placed, num_mirrors = recorded.required, len(recorded.head.mirrors)
    views = placed.views.cpu().numpy()
    columns = [*placed.boxes.cpu().numpy().T, placed.scores.cpu().numpy(), placed.classes.cpu().numpy()]
    columns += [placed.tiles.cpu().numpy(), views // num_mirrors, views % num_mirrors]
    typed = zip(columns, _DETECTION, strict=True)
    return pa.table([pa.array(column, field.type) for column, field in typed], schema=_DETECTION)


def _read_detection(head: RecordedHeader, table: pa.Table) -> RecordedCase:
    columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in _DETECTION.names}
    whole = {name: columns[name].long() for name in ("class", "tile", "model", "mirror")}
    placed = Placed(
        torch.stack([columns[name] for name in _DETECTION.names[:6]], dim=1),
        scores=columns["score"],
        classes=whole["class"],
        views=whole["model"] * len(head.mirrors) + whole["mirror"],
        tiles=whole["tile"],
        starts=torch.tensor(head.starts_vox, dtype=torch.int64).reshape(-1, 3),
        window=head.window_vox,
        num_views=head.num_models * len(head.mirrors),
    )
    return RecordedCase(head, placed=placed, truth=_truth(head, None))


def _segmentation_table(recorded: RecordedCase) -> pa.Table:
    assert recorded.shares is not None
    rows = [
        {"name": name, "payload": pack(share)}
        for name, share in zip((REST, *recorded.head.classes), recorded.shares, strict=True)
    ]
    if recorded.truth is not None and recorded.truth.labels is not None:
        rows.append({"name": TRUTH, "payload": pack(recorded.truth.labels)})
    return pa.Table.from_pylist(rows, schema=_SEGMENTATION)


def _read_segmentation(head: RecordedHeader, table: pa.Table) -> RecordedCase:
    payloads = [value.as_buffer() for value in table["payload"]]
    number = 1 + len(head.classes)
    shares = np.stack([unpack(payload, head.shape_vox, np.uint8) for payload in payloads[:number]])
    labels = None
    if head.has_truth_labels:
        labels = unpack(payloads[number], Grid.from_dict(head.scan_grid).shape, np.uint8)
    return RecordedCase(head, shares=shares, truth=_truth(head, labels))


def _truth(head: RecordedHeader, labels: UInt8[np.ndarray, "x y z"] | None) -> RecordedTruth | None:
    if head.truth_boxes is None:
        return None
    boxes = np.asarray(head.truth_boxes, np.float64).reshape(-1, 6)
    return RecordedTruth(boxes, np.asarray(head.truth_classes, np.int64), labels, head.truth_sha256)


@contextmanager
def _understood(folder: Place, name: str) -> Iterator[None]:
    """What cannot be read is said in a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(
            "candidates.missing", f"{folder.path(name)} is not there.", remedy="Keep the case's candidates again."
        ) from None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, pa.ArrowException, ValidationError) as error:
        raise DataError(
            "candidates.damaged",
            f"{folder.path(name)} cannot be read ({type(error).__name__}).",
            remedy="Delete it and keep the case's candidates again.",
        ) from None


def _six(box: Float64[np.ndarray, " 6"]) -> tuple[float, float, float, float, float, float]:
    x1, y1, z1, x2, y2, z2 = box.tolist()
    return x1, y1, z1, x2, y2, z2
