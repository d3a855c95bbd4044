"""A package's model card: what it answers, for whom, where it comes from, how near and how fast it is."""

from __future__ import annotations

from voxray.inference.package import EngineEntry
from voxray.inference.parity import Parity
from voxray.inference.speed import Speed
from voxray.recipe import Recipe
from voxray.run import Run


def model_card(
    run: Run, recipe: Recipe, engines: tuple[EngineEntry, ...], parity: Parity, speed: Speed, *, name: str
) -> str:
    """The card as Markdown."""
    classes = ", ".join(run.classes[:20]) + (f" and {len(run.classes) - 20} more" if len(run.classes) > 20 else "")
    spacing = " x ".join(f"{side:g}" for side in recipe.grid.spacing_mm)
    window = " x ".join(map(str, recipe.inference.window_vox))
    files = "\n".join(f"| {entry.form} | {entry.precision} | `{entry.file}` |" for entry in engines)
    rows = "\n".join(
        f"| {row.output} | {row.max_difference:.3g} | {row.mean_difference:.3g} | {row.tolerance:.3g} |"
        for row in parity.outputs
    )
    return f"""# {run.name}

A 3D CT {recipe.task} model, packaged by voxray. It answers: {classes}.

    voxray predict {name} SCAN... -o ANSWERS

| | |
|---|---|
| recipe | {recipe.name}: {recipe.about or "no description"} |
| input | CT in Hounsfield units, resampled to {spacing} mm, windows of {window} voxels |
| trained on | {run.dataset}, licence {run.licence}, which binds these weights too |
| code | voxray {run.voxray_version}, commit {run.commit} |

For research. It is no medical device: nobody has shown that it is safe or of use for any patient. It knows only what
its training data showed, and answers confidently on scans unlike them.

## Files

| form | precision | file |
|---|---|---|
{files}

## How near to torch

Largest and mean differences of the raw outputs from torch in float32, on {parity.num_patches} patches of
{" x ".join(map(str, parity.patch_vox))} voxels of {parity.patches}; measured with {parity.measured_with}.

| output | largest | mean | allowed |
|---|---|---|---|
{rows}

## How fast

Milliseconds for a patch of {" x ".join(map(str, speed.patch_vox))} voxels on {speed.device}.

| torch fp32 | torch amp ({speed.amp}) | {speed.runtime} fp32 | {speed.runtime} {speed.half} |
|---|---|---|---|
| {speed.torch_fp32:g} | {speed.torch_amp:g} | {_cell(speed.engine_fp32)} | {_cell(speed.engine_half)} |
"""


def _cell(value: float | None) -> str:
    return "not run here" if value is None else f"{value:g}"
