"""Dataset: what a file in datasets/ says. No pixel is read here.

A dataset is a TOML or JSON file: where scans lie (`images`), what their truth is (`annotations`, told apart by
``kind``), which patient each case belongs to, and how they are split (`folds`). `voxray.loading` turns it into cases.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeFloat, field_validator, model_validator

from voxray.core.addresses import below, local_path
from voxray.core.config import Config, mapping_in, parse, read_mapping
from voxray.core.errors import ConfigError
from voxray.core.staging import text_at
from voxray.core.task_name import TaskName
from voxray.core.text import TextError, same
from voxray.dataset.folds import Folds, KFold, Split, num_folds, split
from voxray.dataset.paths import RootedPath, expand_variables, file_stem
from voxray.dataset.source import BoxTruth, CaseSource, MapTruth
from voxray.dataset.truth import Annotation, BoxesCsv, BoxTable, Instances, SpheresCsv

__all__ = [
    "BoxTruth",
    "CaseSource",
    "Dataset",
    "ImagesConfig",
    "MapTruth",
    "PatientsConfig",
    "Split",
    "num_folds",
    "read_dataset",
    "split",
]


def _as_tuple(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _pattern(text: str | None) -> str | None:
    if text is not None:
        try:
            groups = re.compile(text).groups
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        if groups == 0:
            raise ValueError("must have a group in round brackets around the id, such as (STS_[0-9]+)_ct")
    return text


def _joined_groups(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return None if match is None else "_".join(group for group in match.groups() if group)


class ImagesConfig(Config):
    """How cases are found: files, or folders that each hold one DICOM series."""

    glob: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    """Patterns below the root, such as `imagesTr/*.nii.gz` or `subset*/*.mhd`; hidden files are left out."""
    case_id: str | None = None
    """A regular expression searched in the path below the root; its groups, joined by `_`, are the case id.
    None: the file's name without its suffix."""
    accept_values: bool = False
    """Whether images whose values can be no Hounsfield units are taken, with a warning."""

    _checked = field_validator("case_id")(_pattern)

    def case_id_of(self, path: str) -> str | None:
        """The case id of a path below the root, or None where the pattern does not match."""
        if self.case_id is None:
            return file_stem(path)
        return _joined_groups(same(self.case_id), same(path))


class PatientsConfig(Config):
    """Which patient a case belongs to: from its id, or from a CSV. Without either each case is its own patient."""

    pattern: str | None = None
    """A regular expression searched in the case id; its groups, joined by `_`, are the patient id."""
    file: RootedPath | None = None
    case_column: str = "case"
    patient_column: str = "patient"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","

    _checked = field_validator("pattern")(_pattern)

    @model_validator(mode="after")
    def _one_way(self) -> PatientsConfig:
        if (self.pattern is None) == (self.file is None):
            raise ValueError("give either pattern or file")
        return self

    def patient_of(self, case_id: str) -> str | None:
        """The patient that the pattern finds in a case id, or None where it does not match."""
        assert self.pattern is not None
        return _joined_groups(same(self.pattern), case_id)


class Dataset(Config):
    """Scans, their truth and their folds; every path is absolute once the file has been read."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    about: str = ""
    licence: str
    """It binds whatever is trained on the data; `unknown` is an answer too."""
    root: str = "."
    """The folder of the data, relative to the dataset's file; `~` and `${VARIABLES}` are filled in."""
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=255)]
    """Foreground names, in order: detection class k is ``classes[k]``, label k is ``classes[k - 1]``."""
    images: ImagesConfig
    annotations: Annotated[tuple[Annotation, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=2)]
    """One table, or two: objects from the one and label maps from the other."""
    patients: PatientsConfig | None = None
    folds: Folds = KFold()
    exclude: tuple[str, ...] = ()
    """Case ids that are left out."""
    file: str | None = None
    """The file that says all this; filled in when it is read, so that a run can say what it was trained on."""
    overhang_vox: NonNegativeFloat = 1.0
    """A box that reaches further than this beyond its image is a problem; less is cut off at the border."""

    @field_validator("classes", "exclude")
    @classmethod
    def _as_compared(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(same(name) for name in names)

    @model_validator(mode="after")
    def _consistent(self) -> Dataset:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must differ, got {', '.join(self.classes)}")
        tables = sum(isinstance(annotation, BoxTable) for annotation in self.annotations)
        if len(self.annotations) == 2 and tables != 1:
            raise ValueError("two annotations must be one table of objects and one kind of label map")
        for annotation in self.annotations:
            named = getattr(annotation, "values", None)
            if named and not set(named.values()) & set(self.classes):
                raise ValueError(
                    f"annotations.values names none of the classes, which are {', '.join(self.classes[:5])}"
                )
            one_class = (isinstance(annotation, SpheresCsv | BoxesCsv) and annotation.class_column is None) or (
                isinstance(annotation, Instances) and annotation.classes_file is None
            )
            if one_class and len(self.classes) > 1:
                field = "classes_file" if isinstance(annotation, Instances) else "class_column"
                raise ValueError(f"annotations.{field} is needed where there are {len(self.classes)} classes")
        return self

    def for_task(self, task: TaskName) -> Dataset:
        """What matters of it to a task: objects do not to a segmentation, where there are label maps."""
        maps = tuple(one for one in self.annotations if not isinstance(one, BoxTable))
        if task == "detection" or not maps:
            return self
        no_matter = {"min_object_mm3": 0.0, "without_voxels": "ignore"}
        fields = ({k: v for k, v in no_matter.items() if k in type(one).model_fields} for one in maps)
        seen = tuple(one.model_copy(update=changed) for one, changed in zip(maps, fields, strict=True))
        return self.model_copy(update={"annotations": seen})


def read_dataset(path: str | Path, *, root: str | Path | None = None) -> Dataset:
    """The dataset that a TOML or JSON file describes; `root` takes the place of the one in the file.

    Both may be addresses, such as ``s3://bucket/luna/dataset.toml``: what it names is then relative to that.
    """
    here = local_path(path)
    where, above = str(path), str(path).rpartition("/")[0] if here is None else str(here.absolute().parent)
    data = _elsewhere(where) if here is None else read_mapping(here)
    if root is not None:
        place = local_path(root)
        folder = str(root).rstrip("/") if place is None else str(place.absolute())
    else:
        written = data.get("root", ".")
        try:
            text = expand_variables(written if isinstance(written, str) else ".")
        except ValueError as error:
            raise ConfigError(f"{where}: root: {error}, or give the folder with --root DIR.") from None
        folder = below(above, str(Path(text).expanduser()) if text.startswith("~") else text)
    if isinstance(data.get("root", "."), str):
        data["root"] = folder
    data["file"] = where if here is None else str(here.absolute())
    return parse(Dataset, data, where=where, context={"root": folder})


def _elsewhere(address: str) -> dict[str, Any]:
    try:
        text = text_at(address)
    except FileNotFoundError:
        raise ConfigError(f"{address}: no such file; give the address of a .toml or .json file.") from None
    except TextError as error:
        raise ConfigError(f"{address}: cannot be read ({error}); give a readable UTF-8 text file.") from None
    return mapping_in(text, where=address)
