"""Export: a run or an ensemble as a package that runtimes open at once, if its answers are those of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from voxray.core.config import to_json
from voxray.core.errors import ConfigError
from voxray.core.progress import Progress
from voxray.core.recipe import Recipe, parse_recipe
from voxray.core.storage import Location, Place
from voxray.exporting.card import model_card
from voxray.exporting.monai_bundle import PACKAGE, write_detection_bundle, write_segmentation_bundle
from voxray.exporting.parity import Parity, compare, require, worst
from voxray.exporting.sample_patches import calibration_patches, real_patches
from voxray.exporting.source_networks import SourceNetwork, Trained, read_trained
from voxray.exporting.speed import Speed, device_name, milliseconds, table
from voxray.inference.package import EngineEntry, write_manifest, writing
from voxray.loading.inputs import keep_out_of_run
from voxray.models import MODELS
from voxray.runtimes import (
    PRECISIONS,
    RUNTIMES,
    Precision,
    Runtime,
    TorchRuntime,
    TrainedNetwork,
    network_of,
    open_runtime,
)
from voxray.runtimes.device import choose_device
from voxray.runtimes.network import EngineFormat
from voxray.runtimes.onnxruntime import OnnxRuntime
from voxray.runtimes.openvino.engine import OpenVinoRuntime, save_ir
from voxray.runtimes.openvino.int8 import save_int8
from voxray.runtimes.tensorrt_build import EngineKey, build_engine, key_for, require_flavour

FORMS: dict[str, EngineFormat] = {"onnx": "onnx", "openvino": "openvino", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class ExportOptions:
    """What is asked of an export."""

    runtime: str = "onnx"
    precision: str = "fp32"
    batches: tuple[int, ...] = (1, 4, 8)
    window_vox: tuple[int, ...] | None = None
    """None: the recipe's."""
    scan: Path | None = None
    """Patches for the comparison come from here; None: from a validation case, or else from a phantom."""
    device: str = "auto"
    """Where the engine is compared and timed; ``auto``: for TensorRT a GPU where there is one, else the CPU."""

    def checked(self) -> tuple[EngineFormat, Precision, tuple[int, int, int]]:
        """The form, the precision and the batches, or a ConfigError."""
        if self.runtime not in FORMS:
            raise ConfigError(f"--runtime {self.runtime}: no such form; allowed are {', '.join(FORMS)}.")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--precision {self.precision}: allowed are {', '.join(PRECISIONS)}.")
        if self.precision == "int8" and self.runtime != "openvino":
            raise ConfigError(f"--precision int8: goes with --runtime openvino, not with {self.runtime}.")
        sizes = self.batches * 3 if len(self.batches) == 1 else self.batches
        if len(sizes) != 3 or sizes[0] < 1 or list(sizes) != sorted(sizes):
            raise ConfigError(
                f"--batch {','.join(map(str, self.batches))}: give one size, or the smallest, the usual and the "
                f"largest, such as 1,4,8."
            )
        return FORMS[self.runtime], self.precision, (sizes[0], sizes[1], sizes[2])


@dataclass(frozen=True)
class ExportReport:
    """The package, and how near and fast it is."""

    output: Location
    parity: Parity
    speed: Speed


def export(
    run: str | Path, output: Location, options: ExportOptions | None = None, *, progress: Progress
) -> ExportReport:
    """The run's best weights, or a package's, as a package; a DataError where its answers are not torch's."""
    chosen = options or ExportOptions()
    form, precision, batches = chosen.checked()
    wanted = "cpu" if chosen.device == "auto" and form != "tensorrt" else chosen.device
    chosen = replace(chosen, device=str(choose_device(wanted)))
    keep_out_of_run(output, run)
    trained = read_trained(run)
    trained = replace(trained, recipe=_with_window(trained, chosen.window_vox))
    with (
        writing(output) as folder,
        progress.track("export", total=3 + 2 * len(trained.parts), unit="steps") as advance,
    ):
        limited = chosen.device == "cpu"
        patches, source = real_patches(trained.run, trained.recipe, chosen.scan, limited=limited, progress=progress)
        ranges = (
            calibration_patches(trained.run, trained.recipe, chosen.scan, limited=limited, progress=progress)
            if precision == "int8"
            else ()
        )
        advance(1)
        engines: list[EngineEntry] = []
        parities: list[Parity] = []
        packed: list[TrainedNetwork] = []
        for part in trained.parts:
            entries, network = _write_part(part, trained, folder, options=chosen, ranges=ranges)
            advance(1)
            reference = TorchRuntime(part.module, chosen.device)
            parity = _parity(network, reference, patches, form=form, precision=precision, source=source)
            require(parity)
            advance(1)
            engines += entries
            parities.append(parity)
            packed.append(network)
        reference = TorchRuntime(trained.parts[0].module, chosen.device)
        speed = _speed(packed[0], reference, patches[0], form=form, precision=precision)
        advance(1)
        report = ExportReport(output, worst(parities), speed)
        _write_about(trained, tuple(engines), report, folder, options=chosen, batches=batches)
        advance(1)
    return report


def _write_part(
    part: SourceNetwork,
    trained: Trained,
    folder: Path,
    *,
    options: ExportOptions,
    ranges: Sequence[Float[Tensor, "1 1 x y z"]],
) -> tuple[tuple[EngineEntry, ...], TrainedNetwork]:
    """Writes one network's weights and engines, and opens what was written."""
    form, precision, batches = options.checked()
    network = network_of(trained.recipe, part.module, digest=part.digest, folder=trained.kept_in, batches=batches)
    device = torch.device(options.device)
    engines = write_engines(
        network, folder, form=form, precision=precision, device=device, ranges=ranges, name=part.engine
    )
    engines = tuple(entry.model_copy(update={"member": part.number}) for entry in engines)
    weights = {name: value.contiguous() for name, value in part.module.state_dict().items()}
    safetensors.torch.save_file(weights, folder / part.weights)
    brought = {(entry.form, entry.precision): folder / entry.file for entry in engines}
    key = next((entry.key for entry in engines if entry.key is not None), None)
    return engines, replace(network, module=None).with_files(brought, key)


def _write_about(
    trained: Trained,
    engines: tuple[EngineEntry, ...],
    report: ExportReport,
    folder: Path,
    *,
    options: ExportOptions,
    batches: tuple[int, int, int],
) -> None:
    """Writes what a reader and a predictor want to know of the package."""
    form, precision, _ = options.checked()
    parity, speed, ensemble = report.parity, report.speed, trained.ensemble
    (folder / "parity.json").write_text(to_json(parity) + "\n", encoding="utf-8")
    (folder / "speed.json").write_text(to_json(speed) + "\n", encoding="utf-8")
    card = model_card(
        trained.run, trained.recipe, engines, parity, speed, name=Place.of(report.output).name, ensemble=ensemble
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    fields = {
        "task": trained.recipe.task,
        "classes": trained.run.classes,
        "runtime": _runtime_of(form),
        "precision": precision,
        "batches": batches,
        "provenance": trained.provenance,
        "engines": engines,
        "ensemble": ensemble,
    }
    write_manifest(folder, fields, trained.recipe)


def export_bundle(
    run: str | Path, output: Location, options: ExportOptions | None = None, *, progress: Progress
) -> None:
    """The run's best weights, or a package's, as a MONAI bundle."""
    chosen = options or ExportOptions()
    chosen.checked()
    keep_out_of_run(output, run)
    trained = read_trained(run)
    if trained.ensemble is not None:
        raise ConfigError(
            f"{run}: has {len(trained.parts)} networks, and a MONAI bundle holds one; export the run of one fold, or "
            f"leave out --as monai-bundle."
        )
    about, recipe, module = trained.run, _with_window(trained, chosen.window_vox), trained.parts[0].module
    with writing(output) as folder:
        if recipe.task == "segmentation":
            write_segmentation_bundle(folder, about, recipe, module)
        else:
            (folder / PACKAGE).parent.mkdir()
            export(run, folder / PACKAGE, chosen, progress=progress)
            write_detection_bundle(folder, about, recipe)


def write_engines(
    network: TrainedNetwork,
    folder: Path,
    *,
    form: EngineFormat,
    precision: Precision,
    device: torch.device,
    ranges: Sequence[Float[Tensor, "1 1 x y z"]] = (),
    name: str = "model",
) -> tuple[EngineEntry, ...]:
    """The files that runtimes open, called `name`: ONNX always, and the form that was asked for.

    `ranges` are the patches that int8 is calibrated on.
    """
    plain = network.onnx("fp32")
    (folder / f"{name}.onnx").write_bytes(plain)
    entries = [EngineEntry(form="onnx", precision="fp32", file=f"{name}.onnx")]
    if precision != "fp32" and form != "openvino":
        typed = f"{name}-{precision}.onnx"
        (folder / typed).write_bytes(network.onnx(precision))
        entries.append(EngineEntry(form="onnx", precision=precision, file=typed))
    if form == "openvino":
        obstacle = RUNTIMES["openvino"].obstacle(torch.device("cpu"), precision)
        if obstacle is not None:
            raise obstacle
        if precision == "int8":
            save_int8(plain, ranges, folder / f"{name}.xml")
        else:
            save_ir(plain, folder / f"{name}.xml")
        entries.append(EngineEntry(form="openvino", precision=precision, file=f"{name}.xml"))
    if form == "tensorrt":
        flavour = require_flavour()
        key: EngineKey = key_for(
            flavour, window_vox=network.window_vox, batches=network.batches, precision=precision, device=device
        )
        engine = build_engine(network.onnx(precision), key, flavour)
        (folder / f"{name}.engine").write_bytes(engine)
        entries.append(EngineEntry(form="tensorrt", precision=precision, file=f"{name}.engine", key=key))
    return tuple(entries)


def _with_window(trained: Trained, window: Sequence[int] | None) -> Recipe:
    if window is None:
        return trained.recipe
    override = f"inference.window_vox={list(window)}"
    where = f"--window {','.join(map(str, window))}"
    return parse_recipe(trained.run.recipe, MODELS, overrides=[override], where=where)


def _parity(
    network: TrainedNetwork,
    reference: Runtime,
    patches: Sequence[Float[Tensor, "1 1 x y z"]],
    *,
    form: EngineFormat,
    precision: Precision,
    source: str,
) -> Parity:
    runtime, how = _checker(network, reference.device, form=form, precision=precision)
    x, y, z = patches[0].shape[2:]
    outputs, agreement = compare(runtime, reference, patches, network.outputs)
    return Parity(
        runtime=_runtime_of(form),
        precision=precision,
        measured_with=how,
        patches=source,
        num_patches=len(patches),
        patch_vox=(x, y, z),
        outputs=outputs,
        agreement=agreement,
    )


def _checker(
    network: TrainedNetwork, device: torch.device, *, form: EngineFormat, precision: Precision
) -> tuple[Runtime, str]:
    """The engine where this machine runs it; else the same graph on a runtime that it has."""
    name = _runtime_of(form)
    if RUNTIMES[name].obstacle(device, precision) is None:
        return open_runtime(name, network, device=device, precision=precision), f"{name} on {device}"
    graph = network.onnx(precision)
    if precision == "bf16":
        # onnxruntime has no bf16 on CPUs; OpenVINO reads the graph and computes what it says in float32 steps.
        runtime: Runtime = OpenVinoRuntime(graph, precision="fp32")
        return _As(runtime, precision), "openvino on cpu, with the weights of the bf16 graph"
    return OnnxRuntime(graph, precision=precision), "onnxruntime on cpu, from the same graph"


class _As(Runtime):
    """A runtime that stands in for one of another precision."""

    def __init__(self, runtime: Runtime, precision: Precision) -> None:
        self._runtime, self.name, self.device = runtime, runtime.name, runtime.device
        self.precision = precision

    def __call__(self, images: Float[Tensor, "b 1 x y z"]) -> Any:
        """What the runtime answers."""
        return self._runtime(images)


def _speed(
    network: TrainedNetwork,
    reference: TorchRuntime,
    patch: Float[Tensor, "1 1 x y z"],
    *,
    form: EngineFormat,
    precision: Precision,
) -> Speed:
    """Torch beside the engine, at fp32 and at half."""
    half: Precision = precision if precision != "fp32" else _half_of(form)
    name, device = _runtime_of(form), reference.device
    amp: Precision = "bf16" if device.type == "cpu" else half

    def engine(kind: Precision) -> float | None:
        if RUNTIMES[name].obstacle(device, kind) is not None:
            return None
        return milliseconds(open_runtime(name, network, device=device, precision=kind), patch)

    x, y, z = patch.shape[2:]
    return table(
        torch_fp32=milliseconds(reference, patch),
        torch_amp=milliseconds(TorchRuntime(reference.module, device, precision=amp), patch),
        engines={"engine_fp32": engine("fp32"), "engine_half": engine(half)},
        about={"device": device_name(device), "patch_vox": (x, y, z), "runtime": name, "amp": amp, "half": half},
    )


def _half_of(form: EngineFormat) -> Precision:
    return "bf16" if form == "openvino" else "fp16"


def _runtime_of(form: EngineFormat) -> str:
    return "onnxruntime" if form == "onnx" else form
