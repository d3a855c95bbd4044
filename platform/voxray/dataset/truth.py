"""The kinds of annotation that a dataset file can name; what each means is in `voxray.annotations`."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator

from voxray.core.config import Config
from voxray.core.text import same
from voxray.dataset.paths import RootedPath

WorldFrame = Literal["LPS", "RAS"]
Objects = Literal["components", "none"]
SixColumns = tuple[str, str, str, str, str, str]


class BoxTable(Config):
    """What all tables of objects share: one file for the whole dataset."""

    file: RootedPath
    absent_images: Literal["report", "ignore"] = "report"
    """Rows of cases that have no image: `voxray check` reports them, or they are known to be missing."""


class SpheresCsv(BoxTable):
    """LUNA16's annotations.csv: a centre in world mm and a diameter in mm a row."""

    kind: Literal["spheres_csv"] = "spheres_csv"
    excluded_file: RootedPath | None = None
    """Findings that count neither as hits nor as false positives (annotations_excluded.csv)."""
    frame: WorldFrame = "LPS"
    case_column: str = "seriesuid"
    centre_columns: tuple[str, str, str] = ("coordX", "coordY", "coordZ")
    diameter_column: str = "diameter_mm"
    class_column: str | None = None
    """None: the dataset has one class."""


def _names_from(first: int) -> BeforeValidator:
    """Lets a list of names stand for the numbers from `first` on; names are spelled as they are compared."""

    def numbered(value: Any) -> Any:
        table = dict(enumerate(value, start=first)) if isinstance(value, list | tuple) else value
        if not isinstance(table, dict):
            return table
        return {number: same(name) if isinstance(name, str) else name for number, name in table.items()}

    return BeforeValidator(numbered)


MapValues = Annotated[dict[PositiveInt, str] | None, _names_from(1)]
Indices = Annotated[dict[NonNegativeInt, str] | None, _names_from(0)]


class MonaiJson(BoxTable):
    """MONAI's data list: for each image `box` (centre and size, LPS mm) and `label` (a number)."""

    kind: Literal["monai_json"] = "monai_json"
    lists: tuple[str, ...] = ("training", "validation")
    values: Indices = None
    """Label -> class name, or a list of names for 0, 1, ...; None: what the file's own table `labels` says, and where
    it has none, index into classes."""


class BoxesCsv(BoxTable):
    """One box a row; the frame has no default, because a wrong guess is not seen until training fails."""

    kind: Literal["boxes_csv"] = "boxes_csv"
    frame: Literal["LPS", "RAS", "voxel"]
    """`voxel`: edge coordinates of the image as it is stored; the first voxel reaches from 0 to 1."""
    form: Literal["corners", "center_size"] = "corners"
    case_column: str = "case"
    class_column: str | None = "class"
    """None: the dataset has one class."""
    box_columns: SixColumns = ("x1", "y1", "z1", "x2", "y2", "z2")
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","


class BoxesJson(BoxTable):
    """``{"frame": "LPS", "boxes": [{"case", "class", "center_mm", "size_mm"} or {..., "corners_mm"}]}``."""

    kind: Literal["boxes_json"] = "boxes_json"


class MapSettings(Config):
    """What all label maps share."""

    objects: Objects = "components"
    """Whether connected components (26 neighbours) of a class are objects for detection."""
    min_object_mm3: NonNegativeFloat = 0.0
    """Smaller components are no objects; their voxels keep their label."""


class LabelMaps(MapSettings):
    """One label map per case."""

    kind: Literal["labels"] = "labels"
    file: RootedPath
    """Where it lies; `{case}` and `{patient}` stand for the ids."""
    values: MapValues = None
    """Value -> class name, or a list of names for 1, 2, ...; None: value k is the k-th class."""
    unlisted: Literal["refuse", "background"] = "refuse"
    """What a value or name that is not one of the dataset's classes becomes."""
    absent: Literal["refuse", "empty"] = "refuse"
    """What a case without a file is: a problem, or a scan without foreground."""


class Msd(MapSettings):
    """Medical Segmentation Decathlon (and nnU-Net): dataset.json pairs images with label maps and names values."""

    kind: Literal["msd"] = "msd"
    file: RootedPath = Field(default="dataset.json", validate_default=True)
    lists: tuple[str, ...] = ("training",)
    unlisted: Literal["refuse", "background"] = "refuse"


class MaskFolder(MapSettings):
    """TotalSegmentator: a folder per case with one binary mask per class, found by its name."""

    kind: Literal["mask_folder"] = "mask_folder"
    file: RootedPath = Field(default="{case}/segmentations/{class}.nii.gz", validate_default=True)
    """Must hold `{class}`; a class whose file is absent is empty."""
    unlisted: Literal["refuse", "background"] = "refuse"
    """What masks with other names are."""
    overlaps: Literal["refuse", "first"] = "refuse"
    """What a voxel of two masks is: a problem, or the class that the dataset names first."""

    @field_validator("file")
    @classmethod
    def _names_the_class(cls, file: str) -> str:
        if PurePath(file).name.count("{class}") != 1:
            raise ValueError("must hold {class} once, in the last part of the path")
        return file


class Instances(Config):
    """nnDetection: a map of instances 1, 2, ... with a JSON of their classes; or one binary mask."""

    kind: Literal["instances"] = "instances"
    file: RootedPath
    classes_file: RootedPath | None = None
    """``{"instances": {"1": 0, "2": 0}}`` with numbers or names of classes; None: a binary mask whose components are
    the instances of the one class."""
    values: Indices = None
    """Number in classes_file -> class name (nnDetection's `labels`), or a list of names for 0, 1, ...; None: index
    into classes."""
    min_object_mm3: NonNegativeFloat = 0.0
    """Of a binary mask: smaller components are no objects."""
    absent: Literal["refuse", "empty"] = "refuse"
    """What a case without a file is: a problem, or a scan without an object."""
    without_voxels: Literal["refuse", "ignore"] = "refuse"
    """What an instance of the JSON is of which the map has no voxel: a problem, or no object."""


Annotation = Annotated[
    SpheresCsv | MonaiJson | BoxesCsv | BoxesJson | LabelMaps | Msd | MaskFolder | Instances,
    Field(discriminator="kind"),
]
