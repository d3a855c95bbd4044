"""Whole scans from file to file, against the published bundles' own MONAI pipelines on the same weights and scan.

The networks have the published sizes and seeded, random weights. The spleen's is then trained on the scan for nine
minutes, as a random network is undecided nearly everywhere, and every rounding and every window's border would show;
the detector's last bias is set so that some anchors answer. Masks are held against the peer's, and both sides'
against the truth. The scan is a real abdomen enlarged to 448 x 372 x 200 (a generated one where the real data is
absent), its voxels sized so that both sides' windows fall on the same places. Each side answers in a process of its
own, so that the peak memory is that side's. "same" is fp32 with the peer's windows, "int8" the same at int8, "free"
int8 with the fast plan's windows; int8 is calibrated on other noise over the scan.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from inference_sides import Job, written
from monai.losses.dice import DiceCELoss
from safetensors.torch import save_file
from scans import enlarged, with_noise
from table import Row, options, show

from voxray.boxes.nms import nms
from voxray.boxes.overlap import paired_iou
from voxray.core.case import VolumeStats
from voxray.core.recipe import Recipe
from voxray.core.volume import Shape, Volume
from voxray.exporting.sample_patches import varied_patches
from voxray.preprocess import normalise, orient, resample, resample_labels
from voxray.readers import read_volume, write_nifti
from voxray.recipes import read_recipe
from voxray.runtimes import RUNTIMES, choose_runtime, network_of, open_runtime
from voxray.runtimes.openvino.int8 import save_int8

GB = 1e9 / 2**30
PUBLISHED_GIB = 26 * GB
"""What the whole-body bundle's page names for 287 x 287 x 397 voxels at 1.5 mm."""
SCAN = (448, 372, 200)
SMALL, SMALL_LUNG = (128, 112, 96), (128, 128, 64)
"""On the recipe's grid."""
AS_MONAI = ("anchors.published_rounding=true",)
"""The half-sizes of anchors that MONAI's generator gives."""


TAUGHT_STEPS, TAUGHT_SIDE, TAUGHT_RATE = 2400, 48, 3e-3
"""How a network is taught; this much gives it a Dice of 0.96 on the scan."""


@dataclass(frozen=True)
class Case:
    """A recipe on a scan: `grid` is the scan's shape on the recipe's grid."""

    name: str
    recipe: str
    num_classes: int
    grid: Shape
    aim: float
    free_aim: float = 0.0
    scan: Shape = SCAN
    overrides: tuple[str, ...] = ()
    share: float = 0.0
    """Of a detector's anchors that score above a half."""
    steps: int = TAUGHT_STEPS


FULL = (
    Case("spleen", "spleen", 1, (288, 240, 192), 6.0, 12.0),
    Case("whole_body 3.0 mm", "whole_body", 104, (168, 144, 128), 2.0, 3.5, overrides=("grid.spacing_mm=[3,3,3]",)),
    Case("whole_body 1.5 mm", "whole_body", 104, (240, 168, 168), 2.0, 3.5),
    Case(
        "lung_nodule",
        "lung_nodule",
        1,
        (192, 192, 96),
        2.0,
        2.0,
        scan=(256, 256, 120),
        share=1e-3,
        overrides=AS_MONAI,
    ),
)
QUICK = (
    Case("spleen", "spleen", 1, (144, 144, 96), 6.0, 12.0, scan=(224, 224, 100), steps=300),
    Case(
        "whole_body 3.0 mm",
        "whole_body",
        104,
        (64, 48, 48),
        2.0,
        3.5,
        scan=(160, 120, 100),
        overrides=("grid.spacing_mm=[3,3,3]", "inference.window_vox=[48,48,48]"),
    ),
    Case("lung_nodule", "lung_nodule", 1, (64, 64, 32), 2.0, 2.0, scan=(90, 90, 40), share=1e-3, overrides=AS_MONAI),
)
LARGE = Case(
    "whole_body 1.5 mm, 287x287x397",
    "whole_body",
    104,
    (287, 287, 397),
    2.5 * GB,
    scan=(512, 512, 397),
    overrides=("inference.window_vox=[64,64,64]", "inference.plan=fast", "inference.accumulate=fp16"),
)


def main() -> None:
    """Measures every case and prints the table."""
    asked = options(__doc__ or "")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in QUICK if asked.quick else FULL:
            rows += detection_rows(case, folder) if case.recipe == "lung_nodule" else segmentation_rows(case, folder)
        if not asked.quick:
            rows.append(memory_row(LARGE, folder))
        rows.append(nms_row(10_000))
        for recipe, sides in (("spleen", 96), ("whole_body", 64), ("lung_nodule", 64)):
            rows += runtime_rows(recipe, 48 if asked.quick else sides, folder)
    show(rows, title="Inference: the bundles' pipelines and voxray", json_file=asked.json)


def segmentation_rows(case: Case, folder: Path) -> Iterator[Row]:
    """Time, memory and agreement at fp32 with the bundle's windows, then free."""
    job = prepared(case, folder)
    peer = measured("monai_segmentation", replace(job, answer=str(folder / "peer.nii.gz")), folder)
    same = replace(job, overrides=(*job.overrides, "inference.accumulate=fp16")) if case.num_classes > 1 else job
    voxray = measured("voxray", replace(same, answer=str(folder / "same.nii.gz")), folder)
    free = freed(job, folder)
    quick = measured("voxray", replace(free, answer=str(folder / "free.nii.gz")), folder)
    yield Row(f"{case.name}, file to file, fp32", peer["seconds"], voxray["seconds"], "s", case.aim, True)
    yield Row(f"{case.name}, file to file, free", peer["seconds"], quick["seconds"], "s", case.free_aim, True)
    yield Row(f"{case.name}, peak memory, fp32", peer["peak_gib"], voxray["peak_gib"], "GiB", 2.0, True)
    if case.num_classes == 1:
        measured("voxray", replace(job, int8=free.int8, answer=str(folder / "int8.nii.gz"), turns=1), folder)
        expected, truth = answered(folder, "peer.nii.gz"), answered(folder, "truth.nii.gz")
        for kind, least in (("same", 0.999), ("int8", 0.995), ("free", 0.995)):
            found = answered(folder, f"{kind}.nii.gz")
            yield Row(f"{case.name}, masks agree, {kind}", 1.0, dice(found, expected), "Dice", least)
            yield Row(f"{case.name}, truth, {kind}", dice(expected, truth), dice(found, truth), "Dice", least)
    else:
        yield labels_row(case, folder)


def freed(job: Job, folder: Path) -> Job:
    """The job with windows and precision chosen for speed: larger and fewer windows, at int8."""
    recipe, network = job.network()
    scan = with_noise(read_volume(Path(job.scan)), 1)
    path = folder / "int8.xml"
    save_int8(network_of(recipe, network).onnx(), varied_patches(scan, recipe, 24, limited=True), path)
    return replace(job, overrides=(*job.overrides, "inference.plan=fast"), int8=str(path))


def labels_row(case: Case, folder: Path) -> Row:
    """How many voxels get the same of many labels, for a scan that lies on the recipe's grid already.

    A random network is undecided between some of its 105 classes nearly everywhere; so both sides must see the same
    numbers, and voxray rounds what it resamples to whole HU.
    """
    job = replace(prepared(replace(case, scan=SMALL, grid=SMALL), folder), turns=1)
    measured("monai_segmentation", replace(job, answer=str(folder / "peer.nii.gz")), folder)
    measured("voxray", replace(job, answer=str(folder / "same.nii.gz")), folder)
    agreement = float((answered(folder, "same.nii.gz") == answered(folder, "peer.nii.gz")).mean())
    return Row(f"{case.name}, masks agree, same", 1.0, agreement, "voxels", 0.999)


def detection_rows(case: Case, folder: Path) -> Iterator[Row]:
    """Time, memory, and boxes in the patient's space."""
    job = prepared(case, folder)
    peer = measured("monai_detection", replace(job, answer=str(folder / "peer.npz")), folder)
    voxray = measured("voxray", replace(job, answer=str(folder / "same.npz")), folder)
    free = freed(job, folder)
    quick = measured("voxray", replace(free, answer=str(folder / "free.npz")), folder)
    yield Row(f"{case.name}, file to file, fp32", peer["seconds"], voxray["seconds"], "s", case.aim, True)
    yield Row(f"{case.name}, file to file, free", peer["seconds"], quick["seconds"], "s", case.free_aim, True)
    yield Row(f"{case.name}, peak memory, fp32", peer["peak_gib"], voxray["peak_gib"], "GiB", 1.0, True)
    yield boxes_row(case, folder)


def boxes_row(case: Case, folder: Path) -> Row:
    """How many boxes are found again, for a scan that lies on the recipe's grid already (see `labels_row`)."""
    job = replace(prepared(replace(case, scan=SMALL_LUNG, grid=SMALL_LUNG), folder), turns=1)
    measured("monai_detection", replace(job, answer=str(folder / "peer.npz")), folder)
    measured("voxray", replace(job, answer=str(folder / "same.npz")), folder)
    boxes, others = (torch.from_numpy(np.load(folder / f"{side}.npz")["boxes"]).float() for side in ("peer", "same"))
    return Row(
        f"{case.name}, {len(boxes)} boxes at IoU .99, same", 1.0, found_again(boxes, others, 0.99), "share", 0.99
    )


def found_again(boxes: torch.Tensor, others: torch.Tensor, least: float) -> float:
    """The share of boxes that have one among the others with that IoU."""
    overlap = paired_iou(boxes[:, None], others[None])
    return (
        float((overlap.amax(dim=1) > least).float().mean()) if overlap.numel() else float(len(boxes) == len(others))
    )


def memory_row(case: Case, folder: Path) -> Row:
    """The peak for a long scan of the whole body; the peer's is the published one, as it would not fit here."""
    job = replace(prepared(case, folder), answer=str(folder / "large.nii.gz"), turns=1)
    found = measured("voxray", job, folder)
    return Row(
        f"{case.name}, peak memory (peer: as published)",
        PUBLISHED_GIB,
        found["peak_gib"],
        "GiB",
        case.aim,
        True,
        "voxray",
    )


def nms_row(count: int) -> Row:
    """Crowded boxes, as untrained and over-sensitive networks give them."""
    from monai.data.box_utils import non_max_suppression

    rng = torch.Generator().manual_seed(3)
    centres = torch.rand((300, 3), generator=rng) * torch.tensor([500.0, 500.0, 180.0])
    centre = centres[torch.randint(300, (count,), generator=rng)] + torch.randn((count, 3), generator=rng) * 2
    half = 3 + torch.rand((count, 3), generator=rng) * 10
    boxes, scores = torch.cat([centre - half, centre + half], dim=1), torch.rand(count, generator=rng)
    classes = torch.zeros(count, dtype=torch.int64)
    peer = best_of(lambda: non_max_suppression(boxes, scores, 0.22), turns=2)
    voxray = best_of(lambda: nms(boxes, scores, classes, iou=0.22), turns=5)
    return Row(f"NMS of {count} boxes", peer * 1000, voxray * 1000, "ms", 20.0, True)


def runtime_rows(name: str, side: int, folder: Path) -> Iterator[Row]:
    """Each runtime's time for one window beside torch's at fp32, and what ``auto`` takes beside the best."""
    recipe = read_recipe(name)
    torch.manual_seed(0)
    network = recipe.network.build(recipe, 104 if name == "whole_body" else 1).eval()
    images = torch.rand((1, 1, side, side, side), generator=torch.Generator().manual_seed(0))
    opened, path = network_of(recipe, network), folder / f"{name}-int8.xml"
    save_int8(opened.onnx(), [images], path)
    opened = opened.with_files({("openvino", "int8"): path})
    taken: dict[str, float] = {}
    others = [("torch", "bf16"), ("openvino", "bf16"), ("openvino", "int8")]
    for runtime, precision in [(runtime, "fp32") for runtime in RUNTIMES] + others:
        if runtime == "torch-compiled" or RUNTIMES[runtime].obstacle(torch.device("cpu"), precision) is not None:  # type: ignore[arg-type]
            continue
        engine = open_runtime(runtime, opened, precision=precision)  # type: ignore[arg-type]
        with torch.inference_mode():
            taken[f"{runtime} {precision}"] = best_of(lambda engine=engine: engine(images), turns=3) * 1000  # type: ignore[misc]
    for label, milliseconds in taken.items():
        if label != "torch fp32":
            yield Row(f"{name} {side}^3, {label}", taken["torch fp32"], milliseconds, "ms", 1.0, True)
    best = min(value for label, value in taken.items() if label.endswith("fp32"))
    auto = taken[f"{choose_runtime('auto').runtime} fp32"]
    yield Row(f"{name} {side}^3, auto beside the best at fp32", best, auto, "ms", 0.95, True)


def prepared(case: Case, folder: Path) -> Job:
    """The case's scan and weights as files."""
    recipe = read_recipe(case.recipe, case.overrides)
    sides = np.divide(np.multiply(case.grid, recipe.grid.spacing_mm), case.scan)
    image, labels = enlarged(case.scan, (float(sides[0]), float(sides[1]), float(sides[2])))
    image = with_noise(image, 0)
    write_nifti(image, folder / "scan.nii.gz")
    write_nifti(labels, folder / "truth.nii.gz")
    torch.manual_seed(0)
    network: torch.nn.Module = recipe.network.build(recipe, case.num_classes)
    images = resample(orient(image, recipe.grid.orientation), recipe.grid.spacing_mm)
    if recipe.task == "detection":
        awaken(network, images, recipe, share=case.share)
    elif case.num_classes == 1:
        truth = resample_labels(orient(labels, recipe.grid.orientation), recipe.grid.spacing_mm)
        teach(network, images, truth, recipe, case.steps)
    save_file(network.state_dict(), folder / "weights.safetensors")
    return Job(
        recipe=case.recipe,
        num_classes=case.num_classes,
        weights=str(folder / "weights.safetensors"),
        scan=str(folder / "scan.nii.gz"),
        answer="",
        overrides=case.overrides,
    )


def awaken(network: torch.nn.Module, images: Volume, recipe: Recipe, *, share: float) -> None:
    """Sets a detector's last bias such that this share of one window's anchors scores above a half."""
    middle = images.hounsfield
    side = min(48, *middle.shape) // 16 * 16
    first = [(length - side) // 2 for length in middle.shape]
    window = middle[tuple(slice(begin, begin + side) for begin in first)]
    patch = normalise(torch.from_numpy(np.ascontiguousarray(window)), VolumeStats.of(middle), recipe.intensity)
    with torch.inference_mode():
        output: Any = network.eval()(patch[None, None])
    layer: Any = network.get_submodule("classification_head.cls_logits")
    with torch.no_grad():
        layer.bias -= torch.quantile(output.class_logits[0], 1 - share)


def teach(network: torch.nn.Module, images: Volume, labels: Volume, recipe: Recipe, steps: int) -> None:
    """Trains on patches of the scan, half of them about its organs, until the network knows this scan's by heart."""
    rng = np.random.default_rng(0)
    stats, optimizer = VolumeStats.of(images.voxels), torch.optim.AdamW(network.parameters(), TAUGHT_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TAUGHT_RATE, total_steps=steps)
    loss_of: Any = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, batch=True)
    last = np.maximum(np.subtract(images.voxels.shape, TAUGHT_SIDE), 0)
    organs = np.argwhere(labels.voxels[::4, ::4, ::4] > 0) * 4
    for _ in range(steps):
        centres = [*rng.choice(organs, 2), *rng.integers(images.voxels.shape, size=(2, 3))]
        starts = [np.clip(one - rng.integers(TAUGHT_SIDE, size=3), 0, last) for one in centres]
        patches, truth = (
            torch.stack([torch.from_numpy(np.ascontiguousarray(volume.voxels[_cube(start)])) for start in starts])
            for volume in (images, labels)
        )
        output: Any = network.train()(normalise(patches, stats, recipe.intensity)[:, None])
        optimizer.zero_grad()
        loss: Any = loss_of(output.logits, truth[:, None].long())
        loss.backward()
        optimizer.step()
        schedule.step()


def _cube(start: Any) -> tuple[slice, ...]:
    return tuple(slice(first, first + TAUGHT_SIDE) for first in start)


def measured(side: str, job: Job, folder: Path) -> dict[str, float]:
    """Seconds and GiB of one side, in a process of its own."""
    path = written(job, folder / "job.json")
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("inference_sides.py")), side, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} of {job.recipe} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{side} {job.recipe} {job.overrides}: {found['seconds']:.2f} s, {found['peak_gib']:.2f} GiB", file=sys.stderr
    )
    return found


def answered(folder: Path, name: str) -> Any:
    """A label map; MONAI's writer puts the scan's name before the one asked for."""
    path = folder / name
    if not path.exists():
        path = next(folder.glob(f"*_{name}"))
    loaded: Any = nib.load(path)
    return np.asarray(loaded.dataobj).astype(np.uint8)


def dice(found: Any, expected: Any) -> float:
    """Of the foreground."""
    both, either = int(((found > 0) & (expected > 0)).sum()), int((found > 0).sum() + (expected > 0).sum())
    return 2 * both / max(1, either)


def best_of(action: Callable[[], object], *, turns: int) -> float:
    """The least of several turns, in seconds, after one to warm up."""
    action()
    taken = []
    for _ in range(turns):
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return min(taken)


if __name__ == "__main__":
    main()
