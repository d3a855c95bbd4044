"""A folder of phantoms as a dataset: scans, boxes, label maps, and the files that describe them.

    toy.json             what was asked for; the mark by which a folder is known as one of these
    images/toy_000.nii.gz  labels/toy_000.nii.gz
    boxes.json           world boxes of all cases (kinds with objects)
    dataset.toml         the dataset; dataset_labels.toml or dataset_spleen.toml: another view of the same scans
    .done/toy_000.json   boxes of each finished case: a run that was stopped goes on after the last one

The same words give the same bytes. Files are written beside their place and renamed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import tomlkit
from jaxtyping import Shaped

from voxray.core.errors import ConfigError
from voxray.core.storage import Place, whole
from voxray.core.volume import Grid
from voxray.core.written import require_empty
from voxray.phantoms.kinds import KINDS, SIZES, PhantomKind, draw_phantom
from voxray.phantoms.phantom import Phantom

MARK = "toy.json"
_MAX_CASES = 1000
_REVISION = 2
"""Of what is drawn: the same words give the same bytes within one."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_toy(
    directory: Path,
    *,
    kind: str = "thorax",
    num_cases: int = 12,
    seed: int = 0,
    size: str = "small",
    progress: Callable[[float], object] | None = None,
) -> Path:
    """Writes a dataset of phantoms and returns its dataset.toml; `progress` is called with 1 after each case.

    A folder that was begun with the same words is gone on with; any other that is not empty is refused.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if size not in SIZES:
        raise ConfigError(f"size must be one of {', '.join(SIZES)}, got {size!r}.")
    if not 2 <= num_cases <= _MAX_CASES:
        raise ConfigError(f"a toy dataset has 2 to {_MAX_CASES} cases, got {num_cases}.")
    directory = Path(directory)
    asked = {"kind": kind, "seed": seed, "size": size, "revision": _REVISION}
    _claim(directory, asked)
    _refuse_fewer(directory, num_cases)
    _refuse_changed(directory, kind)
    case_ids = [f"toy_{index:03d}" for index in range(num_cases)]
    for index, case_id in enumerate(case_ids):
        if not _finished(directory, case_id):
            _write_case(directory, case_id, draw_phantom(kind, index, seed=seed, size=size), KINDS[kind])
        if progress is not None:
            progress(1)
    if KINDS[kind].objects:
        _write_boxes(directory, case_ids)
    for name, text in _descriptions(kind, num_cases).items():
        _write(directory / name, text.encode())
    return directory / "dataset.toml"


def _claim(directory: Path, asked: dict[str, Any]) -> None:
    """Makes the folder ours, or says why it cannot be."""
    mark = directory / MARK
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory}: is a file; give the name of a new or empty folder.")
    if mark.is_file():
        try:
            found = json.loads(mark.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError(f"{mark}: cannot be read; give another folder, or delete this one.") from None
        if found != asked:
            was, now = (_words(value) for value in (found, asked))
            raise ConfigError(
                f"{directory}: holds other phantoms ({was}) than asked for ({now}); give another folder."
            )
        return
    try:
        require_empty(Place.of(directory), "toy dataset")
    except ConfigError:
        raise ConfigError(
            f"{directory}: is not empty and was not made by voxray toy; give a new or empty folder."
        ) from None
    for name in ("images", "labels", ".done"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    _write(mark, _json(asked))


def _words(asked: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in asked.items()) if isinstance(asked, dict) else str(asked)


def _refuse_fewer(directory: Path, num_cases: int) -> None:
    there = len(list((directory / ".done").glob("toy_*.json")))
    if there > num_cases:
        raise ConfigError(f"{directory}: holds {there} cases already, more than {num_cases}; give another folder.")


def _refuse_changed(directory: Path, kind: str) -> None:
    """A description that somebody has changed is theirs: it is not written over."""
    every = [_descriptions(kind, num_cases) for num_cases in range(2, 6)]  # 5 folds or fewer are all that differs
    for name in every[0]:
        path = directory / name
        if path.exists() and path.read_bytes() not in {texts[name].encode() for texts in every}:
            raise ConfigError(
                f"{path}: was changed since voxray wrote it, and would be written over; move it away, or give "
                f"another folder."
            )


def _finished(directory: Path, case_id: str) -> bool:
    places = (f".done/{case_id}.json", f"images/{case_id}.nii.gz", f"labels/{case_id}.nii.gz")
    return all((directory / place).is_file() for place in places)


def _write_case(directory: Path, case_id: str, phantom: Phantom, kind: PhantomKind) -> None:
    """The scan, its labels, and last the mark that says that both are whole."""
    grid = phantom.image.grid
    _write(directory / "images" / f"{case_id}.nii.gz", _nifti(phantom.image.voxels, grid))
    _write(directory / "labels" / f"{case_id}.nii.gz", _nifti(phantom.labels, grid))
    boxes = [
        {
            "case": case_id,
            "class": kind.objects[int(index)],
            "center_mm": [round(float(value), 3) for value in (box[:3] + box[3:]) / 2],
            "size_mm": [round(float(value), 3) for value in box[3:] - box[:3]],
        }
        for box, index in zip(phantom.boxes_mm, phantom.classes, strict=True)
    ]
    _write(directory / ".done" / f"{case_id}.json", _json(boxes))


def _write_boxes(directory: Path, case_ids: list[str]) -> None:
    boxes: list[Any] = []
    for case_id in case_ids:
        boxes += json.loads((directory / ".done" / f"{case_id}.json").read_text(encoding="utf-8"))
    _write(directory / "boxes.json", _json({"frame": "LPS", "boxes": boxes}))


def _descriptions(name: str, num_cases: int) -> dict[str, str]:
    """File name -> TOML: boxes where there are objects, label maps, and for the abdomen the spleen alone."""
    kind = KINDS[name]
    labels = {"kind": "labels", "file": "labels/{case}.nii.gz", "objects": "none"}
    whole = _description(f"toy_{name}", "label maps of phantoms", kind.structures, labels, num_cases)
    if kind.objects:
        table = {"kind": "boxes_json", "file": "boxes.json"}
        boxes = _description(f"toy_{name}", "boxes in phantoms", kind.objects, table, num_cases)
        return {"dataset.toml": boxes, "dataset_labels.toml": whole.replace(f"toy_{name}", f"toy_{name}_labels")}
    values = {str(value): structure for value, structure in enumerate(kind.structures, start=1)}
    spleen = {**labels, "unlisted": "background", "values": values}
    only = _description(f"toy_{name}_spleen", "the spleen in phantoms", ("spleen",), spleen, num_cases)
    return {"dataset.toml": whole, "dataset_spleen.toml": only}


def _description(name: str, about: str, classes: tuple[str, ...], annotations: dict[str, Any], num_cases: int) -> str:
    content = {
        "name": name,
        "about": f"Generated: {about}",
        "licence": "CC0-1.0",
        "classes": list(classes),
        "images": {"glob": "images/*.nii.gz"},
        "annotations": annotations,
        "folds": {"kind": "kfold", "num_folds": min(5, num_cases)},
    }
    return "# Made by `voxray toy`; datasets/README.md says what can stand here.\n" + tomlkit.dumps(content)


def _nifti(voxels: Shaped[np.ndarray, "x y z"], grid: Grid) -> bytes:
    image: Any = cast(Any, nib).Nifti1Image(voxels, _LPS_TO_RAS @ grid.affine, dtype=voxels.dtype)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    # gzip's own header would hold the time; zlib writes none, so that the bytes depend on the voxels alone.
    stream = zlib.compressobj(level=4, wbits=31)
    return stream.compress(image.to_bytes()) + stream.flush()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with whole(path) as beside:
        beside.write_bytes(content)
