"""Patches of scans on which an exported network is held against torch's, and those on which int8 is calibrated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from voxray.core.bulkhead import sentence_of
from voxray.core.case import VolumeStats
from voxray.core.errors import ConfigError, VoxrayError
from voxray.core.progress import Progress, tell_warnings
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.core.staging import is_file_at
from voxray.core.volume import Shape, Volume
from voxray.dataset import read_dataset
from voxray.inference.sliding import cut
from voxray.loading import list_cases, load_case
from voxray.phantoms import draw_phantom
from voxray.preprocess import normalise, orient, resample
from voxray.readers import read_volume
from voxray.training.checkpoint import recipe_of
from voxray.windows import place

NUM_PATCHES = 3
NUM_CALIBRATED, NUM_PATCHES_EACH = 4, 6
"""Scans, and patches of each, whose ranges int8 takes."""
PATCH_LIMIT_VOX = 128**3
"""On a CPU, larger windows are compared and timed on a part of them: one of 512 x 512 x 192 voxels takes minutes."""


def real_patches(
    run: Run, recipe: Recipe, scan: Path | None, *, limited: bool, progress: Progress
) -> tuple[list[Float[Tensor, "1 1 x y z"]], str]:
    """Patches of the scan, or of a validation case, where it holds most, and the words for where they are from."""
    volume, source, obstacle = _scan(run, scan)
    if obstacle:
        progress.say(f"warning: compared and timed on {source}; give a scan with --scan")
    tell_warnings(progress, source, volume.warnings)
    return varied_patches(volume, recipe, NUM_PATCHES, limited=limited), source


def calibration_patches(
    run: Run, recipe: Recipe, scan: Path | None, *, limited: bool, progress: Progress
) -> list[Float[Tensor, "1 1 x y z"]]:
    """Patches of training cases, or of the scan where the run's dataset is not here; a ConfigError without either."""
    scans = list(_training_scans(run, progress))
    if not scans and scan is not None:
        scans = [(f"the scan {scan.name}", read_volume(scan))]
    for name, volume in scans:
        tell_warnings(progress, name, volume.warnings)
    if not scans:
        raise ConfigError(
            f"--precision int8: is calibrated on real scans, and the dataset of {run.name} is not here; give a scan "
            f"with --scan, or export at fp32 or bf16."
        )
    return [
        patch for _, volume in scans for patch in varied_patches(volume, recipe, NUM_PATCHES_EACH, limited=limited)
    ]


def varied_patches(volume: Volume, recipe: Recipe, count: int, *, limited: bool) -> list[Float[Tensor, "1 1 x y z"]]:
    """At most `count` normalised patches of a scan, one to a batch: the most varied, as one of air alone says little.

    `limited`: of no more than `PATCH_LIMIT_VOX`.
    """
    image = resample(orient(volume, recipe.grid.orientation), recipe.grid.spacing_mm)
    side = patch_for(recipe, limited=limited)
    voxels = image.hounsfield
    x, y, z = voxels.shape
    starts = place((x, y, z), side, 0.0, recipe.network.stride_vox)
    crops = [cut(voxels, start, side, recipe=recipe) for start in starts]
    crops.sort(key=lambda crop: float(crop.std()), reverse=True)
    stats = VolumeStats.of(voxels)
    tensors = [torch.from_numpy(crop.copy())[None] for crop in crops[:count]]
    return [normalise(tensor, stats, recipe.intensity)[:, None] for tensor in tensors]


def patch_for(recipe: Recipe, *, limited: bool) -> Shape:
    """The recipe's window, or so much of it as `PATCH_LIMIT_VOX` allows: its longest sides are halved first."""
    sides, stride = list(recipe.inference.window_vox), recipe.network.stride_vox
    while limited and sides[0] * sides[1] * sides[2] > PATCH_LIMIT_VOX:
        longest = max(range(3), key=lambda axis: sides[axis] / stride[axis])
        steps = sides[longest] // stride[longest]
        if steps == 1:
            break
        sides[longest] = max(1, steps // 2) * stride[longest]
    return sides[0], sides[1], sides[2]


def _scan(run: Run, scan: Path | None) -> tuple[Volume, str, bool]:
    """A scan for the comparison, what it is, and whether it is a phantom in the place of one: its words say why."""
    if scan is not None:
        return read_volume(scan), f"the scan {scan.name}", False
    why = "the run's dataset is not here"
    if run.dataset_file is not None and is_file_at(run.dataset_file):
        try:
            dataset = read_dataset(run.dataset_file).for_task(recipe_of(run).task)
            sources = list_cases(dataset)
            chosen = next((source for source in sources if source.case_id in run.val_cases), sources[0])
            return load_case(dataset, chosen).image, f"case {chosen.case_id} of {run.dataset}", False
        except Exception as error:  # whatever a reader raises: what is compared need not be this case
            why = f"the run's dataset cannot be read: {sentence_of(error).rstrip('.')}"
    return draw_phantom("thorax", 0).image, f"a generated thorax (no scan was given, and {why})", True


def _training_scans(run: Run, progress: Progress) -> Iterator[tuple[str, Volume]]:
    """The first scans that the run was trained on, each with what it is; those that cannot be read are told."""
    if run.dataset_file is None or not is_file_at(run.dataset_file):
        return
    try:
        dataset = read_dataset(run.dataset_file).for_task(recipe_of(run).task)
        sources = [source for source in list_cases(dataset) if source.case_id in run.train_cases]
    except VoxrayError as error:
        progress.say(f"warning: the run's dataset cannot be read: {error}")
        return
    for source in sources[:NUM_CALIBRATED]:
        try:
            yield f"case {source.case_id}", load_case(dataset, source).image
        except Exception as error:
            progress.say(f"warning: case {source.case_id} is not calibrated on: {sentence_of(error)}")
