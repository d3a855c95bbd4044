"""A model package: a folder with a network in the forms that runtimes open, and everything from voxel to answer.

    package.json          what it is, how to preprocess, decode and merge, where it comes from, SHA-256 of each file
    model.onnx            the network in float32, every window; model-fp16.onnx: typed, where half was asked for
    model.xml, model.bin  OpenVINO's form       model.engine     TensorRT's engine
    weights.safetensors   what the torch runtime loads
    parity.json           how far its answers are from torch's, on patches      speed.json    milliseconds
    README.md             the model card

An ensemble has several networks of one recipe, which answer together: `weights-1.safetensors`, `weights-2...`; where
it was exported, `model-1.onnx` and so on lie beside them, and otherwise runtimes convert the weights when they first
open it. Its `package.json` has schema version 2 and names every member.

Nothing in it is code, and no file is opened before its SHA-256 was found right. It is written beside its place and
then renamed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import safetensors.torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from safetensors import SafetensorError
from torch import nn

from voxray.core.addresses import local_path
from voxray.core.config import Config, parse, read_mapping, to_json
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.core.recipe import AnchorConfig, GridConfig, Intensity, Merge, Recipe, SizeVox, parse_recipe
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.core.task_name import TaskName
from voxray.models import MODELS
from voxray.runtimes.engine_cache import cache_folder
from voxray.runtimes.network import EngineFormat, TrainedNetwork, network_of
from voxray.runtimes.protocol import Precision
from voxray.runtimes.tensorrt_build import EngineKey

SCHEMA_VERSION = 2
"""The newest of `package.json` that is read; a newer one is refused. Packages of one network are of version 1."""
MANIFEST = "package.json"
WEIGHTS = "weights.safetensors"
SUFFIXES = (".onnx", ".xml", ".bin", ".engine", ".safetensors", ".json", ".md")
"""The kinds of file that a package holds; none of them can run code when it is opened."""
_PICKLES = (".pt", ".pth", ".ts", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")


class FileEntry(Config):
    """What a file of the package must be."""

    sha256: str
    size: NonNegativeInt
    """Bytes."""


class Preprocessing(Config):
    """From a scan in HU to what the network sees."""

    grid: GridConfig
    intensity: Intensity
    pad_hu: int
    """What lies beyond the end of a scan, where `padding` is constant."""
    padding: Literal["constant", "replicate"]


class Windows(Config):
    """How a scan is covered."""

    window_vox: SizeVox
    overlap: float
    blend: Literal["constant", "gaussian"]
    stride_vox: SizeVox
    """Sides of windows and their places are multiples of this."""


class Decode(Config):
    """From the network's outputs to a window's candidates (detection); logits need no decoding."""

    outputs: tuple[str, ...]
    """The tensors' names, in order."""
    anchors: AnchorConfig | None = None
    level_strides_vox: tuple[SizeVox, ...] = ()
    candidate_floor: float
    candidates_per_level: int


class Provenance(Config):
    """Where the model comes from."""

    run: str
    commit: str
    dataset: str
    licence: str
    """The dataset's licence: it binds the weights too."""
    weights_sha256: str
    """Over names and values of the weights: equal ones give equal answers."""
    voxray_version: str


class EngineEntry(Config):
    """A file that a runtime opens."""

    form: EngineFormat
    precision: Precision
    file: str
    key: EngineKey | None = None
    """What a TensorRT engine was built by and for."""
    member: PositiveInt | None = None
    """Which network of an ensemble it holds, from 1; None, and not in the file, where there is one network."""


class Member(Config):
    """One network of an ensemble."""

    weights: str
    """Its file."""
    checkpoint: str
    """Which of the run's, as ``epoch_0120``."""
    fold: NonNegativeInt | None
    """The fold that validated it."""
    provenance: Provenance


class Ensemble(Config):
    """The networks that answer together."""

    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    setting: dict[str, Any] = Field(default_factory=dict)
    """What a sweep chose, field by field, in place of what the runs' recipe says."""


class Package(Config):
    """`package.json`. The groups say in plain words what the recipe, which answers, holds."""

    model_config = ConfigDict(populate_by_name=True)

    schema_name: Literal["voxray-package"] = Field(
        default="voxray-package", validation_alias="schema", serialization_alias="schema"
    )
    schema_version: int = 1
    task: TaskName
    classes: tuple[str, ...]
    runtime: Literal["onnxruntime", "openvino", "tensorrt", "torch"]
    """What it was made for; other runtimes open it too where they can. Runs that were consolidated: torch."""
    precision: Precision
    batches: tuple[PositiveInt, PositiveInt, PositiveInt]
    preprocessing: Preprocessing
    windows: Windows
    decode: Decode
    merge: Merge
    provenance: Provenance
    engines: tuple[EngineEntry, ...]
    ensemble: Ensemble | None = None
    """None, and not in the file, where there is one network."""
    recipe: dict[str, Any]
    files: dict[str, FileEntry]

    @property
    def run(self) -> Run:
        """What a predictor wants to know of the run."""
        source = self.provenance
        return Run(
            name=source.run,
            dataset=source.dataset,
            licence=source.licence,
            classes=self.classes,
            recipe=self.recipe,
            commit=source.commit,
            voxray_version=source.voxray_version,
        )


def groups_of(recipe: Recipe) -> dict[str, Any]:
    """The groups of `package.json` that are drawn from the recipe."""
    network, config = recipe.network, recipe.inference
    levels = recipe.level_strides_vox
    return {
        "preprocessing": Preprocessing(
            grid=recipe.grid, intensity=recipe.intensity, pad_hu=recipe.patch.pad_hu, padding=config.padding
        ),
        "windows": Windows(
            window_vox=config.window_vox, overlap=config.overlap, blend=config.blend, stride_vox=network.stride_vox
        ),
        "decode": Decode(
            outputs=network_of(recipe, None).outputs,
            anchors=recipe.anchors,
            level_strides_vox=levels,
            candidate_floor=config.candidate_floor,
            candidates_per_level=config.candidates_per_level,
        ),
        "merge": recipe.merge,
    }


def is_package(location: str | Path) -> bool:
    """Whether the folder holds a package."""
    path = local_path(location)
    return Place.of(location).exists(MANIFEST) if path is None else (path / MANIFEST).is_file()


def package_folder(location: str | Path) -> Path:
    """The package's folder on this machine: one elsewhere is fetched into the user's cache, once for its content."""
    path = local_path(location)
    if path is not None:
        return path
    place = Place.of(location)
    folder = cache_folder() / "packages" / hashlib.sha256(place.read(MANIFEST)).hexdigest()[:32] / place.name
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.unfinished")
        try:
            part.mkdir(parents=True)
            for name in place.names("."):
                place.fetch(name, part / name)
            with suppress(OSError):  # another process was sooner
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def read_package(folder: Path, *, task: TaskName | None = None) -> tuple[Package, Recipe]:
    """The package and its recipe, after every file was found to be what `package.json` says."""
    package, place = read_about(folder), folder / MANIFEST
    recipe = parse_recipe(package.recipe, MODELS, where=f"{place}: recipe")
    _check_groups(package, recipe, place)
    if task is not None and task != package.task:
        raise ConfigError(f"{folder}: is a package for {package.task}, not for {task}; give one for {task}.")
    _check_files(folder, package)
    return package, recipe


def read_about(folder: Path) -> Package:
    """What `package.json` says; no other file is looked at."""
    place = folder / MANIFEST
    if not place.is_file():
        raise ConfigError(
            f"{folder}: no package here (it has no {MANIFEST}); give a folder that `voxray export` wrote."
        )
    data = read_mapping(place)
    version = data.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(
            "package.newer",
            f"{place}: has schema version {version}, this voxray reads up to {SCHEMA_VERSION}.",
            remedy="Install the voxray that wrote it, or a later one, or export the run again.",
        )
    return parse(Package, data, where=str(place))


def package_networks(
    folder: Path, package: Package, recipe: Recipe, *, with_module: bool
) -> tuple[TrainedNetwork, ...]:
    """The package's networks for runtimes; they have modules only where torch is to run them, as loading takes time.

    Those of an ensemble without engines always have theirs: other runtimes convert it, and that is kept in the user's
    cache.
    """
    loads = with_module or not package.engines
    if package.ensemble is None:
        digest = package.provenance.weights_sha256
        return (_network(folder, package, recipe, weights=WEIGHTS if loads else None, digest=digest),)
    return tuple(
        _network(
            folder,
            package,
            recipe,
            weights=member.weights if loads else None,
            digest=member.provenance.weights_sha256,
            number=number,
        )
        for number, member in enumerate(package.ensemble.members, start=1)
    )


def _network(
    folder: Path, package: Package, recipe: Recipe, *, weights: str | None, digest: str, number: int | None = None
) -> TrainedNetwork:
    """One network with its engines; `number` is its place in an ensemble."""
    module = None if weights is None else load_module(folder, package, recipe, weights=weights)
    engines = [entry for entry in package.engines if entry.member == number]
    engine_key = next((entry.key for entry in engines if entry.key is not None), None)
    network = network_of(recipe, module, digest=digest, batches=package.batches)
    return network.with_files({(entry.form, entry.precision): folder / entry.file for entry in engines}, engine_key)


def load_module(folder: Path, package: Package, recipe: Recipe, *, weights: str = WEIGHTS) -> nn.Module:
    """The recipe's network with the weights of that file, in eval mode."""
    module: nn.Module = recipe.network.build(recipe, len(package.classes))
    try:
        module.load_state_dict(safetensors.torch.load_file(folder / weights))
    except (SafetensorError, RuntimeError, OSError) as error:
        text = str(error).strip().splitlines()[0][:200]
        raise DataError(
            "package.weights", f"{folder / weights}: does not fit the recipe's network ({text}).", remedy=_AGAIN
        ) from None
    return module.eval()


@contextmanager
def writing(location: str | Path) -> Iterator[Path]:
    """A new folder beside the place, which takes its name at the end; after an error nothing is left behind.

    Of a place elsewhere the files are written there at the end, `MANIFEST` last.
    """
    place = Place.of(location)
    if place.is_local:
        with _writing_here(Path(place.path("."))) as part:
            yield part
        return
    if place.names(".") or place.folders("."):
        raise ConfigError(f"{place.uri}: is there already; give another folder, or remove it.")
    place.require_writable()
    with tempfile.TemporaryDirectory(prefix="voxray_") as scratch:
        part = Path(scratch) / place.name
        part.mkdir()
        yield part
        files = [path for path in part.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.name == MANIFEST, path)):
            place.put(path.relative_to(part).as_posix(), path)


@contextmanager
def _writing_here(folder: Path) -> Iterator[Path]:
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder}: is there already; give another folder, or remove it.")
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot be written ({error.strerror or error}); give another folder."
        ) from None
    try:
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_manifest(folder: Path, fields: Mapping[str, Any], recipe: Recipe) -> Package:
    """Writes `package.json` over the files that the folder holds."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    files = {name: FileEntry(sha256=sha256_of(folder / name), size=(folder / name).stat().st_size) for name in names}
    version = 1 if fields.get("ensemble") is None else 2
    package = Package(
        **fields, **groups_of(recipe), schema_version=version, recipe=json.loads(to_json(recipe)), files=files
    )
    # What one network has no need of is left out, so that a voxray that knows of no ensembles reads its package.
    new: Any = {"ensemble": True, "engines": {"__all__": {"member"}}} if version == 1 else None
    text = package.model_dump_json(indent=2, by_alias=True, exclude=new)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return package


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_AGAIN = "Copy the package again from where it was written, or export the run again."


def _check_groups(package: Package, recipe: Recipe, place: Path) -> None:
    """What the groups say and what the recipe does must be one; neither is changed by hand."""
    if package.task != recipe.task:
        raise ConfigError(
            f"{place}: task is {package.task}, but its recipe is for {recipe.task}; export the run again."
        )
    for name, group in groups_of(recipe).items():
        if getattr(package, name) != group:
            raise ConfigError(
                f"{place}: {name} is not what its recipe says; leave the file as it was exported, "
                f"and give --set merge.FIELD=VALUE or --set inference.FIELD=VALUE to answer otherwise."
            )


def _check_files(folder: Path, package: Package) -> None:
    for path in sorted(folder.rglob("*")):
        if path.suffix in _PICKLES:
            raise _pickled(folder, path.name)
    named = [entry.file for entry in package.engines]
    if package.ensemble is not None:
        named += [member.weights for member in package.ensemble.members]
    unlisted = next((name for name in named if name not in package.files), None)
    if unlisted is not None:
        raise DataError(
            "package.unlisted", f"{folder}: {unlisted} is used but has no SHA-256 in {MANIFEST}.", remedy=_AGAIN
        )
    for name, entry in package.files.items():
        _check_file(folder, name, entry)


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    pure = PurePosixPath(name)
    path = folder / name
    if pure.is_absolute() or len(pure.parts) != 1 or "\\" in name or pure.name in ("", "..") or path.is_symlink():
        raise DataError(
            "package.outside",
            f"{folder}: {MANIFEST} names {name!r}, which is not a file in the package's own folder.",
            remedy="Do not use this package; get it from where it was exported.",
        )
    if pure.suffix not in SUFFIXES:
        raise _pickled(folder, name)
    if not path.is_file():
        raise DataError("package.missing", f"{path}: is missing.", remedy=_AGAIN)
    if sha256_of(path) != entry.sha256:
        raise DataError("package.hash", f"{path}: its SHA-256 is not the one in {MANIFEST}.", remedy=_AGAIN)


def _pickled(folder: Path, name: str) -> DataError:
    return DataError(
        "package.pickle",
        f"{folder}: holds {name}, a kind of file that can run code when it is opened; packages hold only "
        f"{', '.join(SUFFIXES)}.",
        remedy="Remove the file if it does not belong there, or get the package from where it was exported.",
    )
