"""One scan's answer, with what any format of it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxray.core.answer_json import FindingsFile, ModelStamp, detections_of, findings_file
from voxray.core.detections import Detections
from voxray.core.volume import Volume
from voxray.inference.predictor import Prediction
from voxray.results.writers import Algorithm


@dataclass(frozen=True)
class CaseAnswer:
    """One scan's answer, and what its formats are made of beside it."""

    case: str
    prediction: Prediction
    """On the scan's own grid, in voxels."""
    classes: Sequence[str]
    stamp: ModelStamp
    source: Path
    """The file or folder that the scan was read from."""
    volume: Volume | None = None
    """The scan, which only the preview needs; None: it is read again."""
    series_uid: str | None = None
    """Which series of the source, where it holds several."""

    @property
    def task(self) -> str:
        """Whether it is of a detection or a segmentation."""
        return "detection" if self.prediction.labels is None else "segmentation"

    @property
    def labels(self) -> Volume:
        """The label map of a segmentation."""
        assert self.prediction.labels is not None
        return self.prediction.labels

    @property
    def algorithm(self) -> Algorithm:
        """The model, as DICOM objects name it."""
        stamp = self.stamp
        return Algorithm(name=stamp.run, version=stamp.commit, sha256=stamp.sha256, dataset=stamp.dataset)

    @property
    def findings(self) -> FindingsFile:
        """A detector's answer as its JSON says it."""
        assert self.prediction.detections is not None
        grid = self.prediction.grid
        return findings_file(self.prediction.detections, grid, case=self.case, classes=self.classes, model=self.stamp)

    @property
    def detections(self) -> Detections:
        """The findings in voxels, rounded as the JSON is: formats made of the file later are the same."""
        return detections_of(self.findings, self.classes, frame="voxel")

    @property
    def files(self) -> list[Path]:
        """The files of the source."""
        inside = sorted(self.source.iterdir()) if self.source.is_dir() else [self.source]
        return [path for path in inside if path.is_file()]
