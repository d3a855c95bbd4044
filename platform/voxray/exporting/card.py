"""A package's model card: what it answers, for whom, where it comes from, how near and how fast it is."""

from __future__ import annotations

import math

from voxray.core.evaluation import Evaluation
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.core.text import first_few
from voxray.exporting.parity import Agreement, Parity
from voxray.exporting.speed import Speed
from voxray.inference.package import EngineEntry, Ensemble


def model_card(
    run: Run,
    recipe: Recipe,
    engines: tuple[EngineEntry, ...],
    parity: Parity,
    speed: Speed,
    *,
    name: str,
    ensemble: Ensemble | None = None,
) -> str:
    """The card as Markdown; `ensemble` are the networks where there are several."""
    files = "\n".join(f"| {entry.form} | {entry.precision} | `{entry.file}` |" for entry in engines)
    rows = "\n".join(
        f"| {row.output} | {row.max_difference:.3g} | {row.mean_difference:.3g} | {row.tolerance:.3g} |"
        for row in parity.outputs
    )
    kind = "model" if ensemble is None else _kind_of(ensemble)
    each = "" if ensemble is None else " for each of the networks"
    return f"""{_head(run, recipe, name, kind)}{"" if ensemble is None else _members(ensemble)}
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
{_agreed(parity.agreement)}
## How fast

Milliseconds for a patch of {" x ".join(map(str, speed.patch_vox))} voxels on {speed.device}{each}.

| torch fp32 | torch amp ({speed.amp}) | {speed.runtime} fp32 | {speed.runtime} {speed.half} |
|---|---|---|---|
| {speed.torch_fp32:g} | {speed.torch_amp:g} | {_cell(speed.engine_fp32)} | {_cell(speed.engine_half)} |
"""


def ensemble_card(run: Run, recipe: Recipe, ensemble: Ensemble, *, name: str, score: Evaluation | None = None) -> str:
    """The card of several networks that answer together, as Markdown; `score` is what each had on held-out cases."""
    return f"{_head(run, recipe, name, _kind_of(ensemble))}{_members(ensemble)}{_scored(score)}"


def _agreed(agreement: Agreement | None) -> str:
    if agreement is None or agreement.value is None:
        return ""
    return f"\n{agreement.measure}: {agreement.value:.4f}.\n"


def _kind_of(ensemble: Ensemble) -> str:
    return f"model of {len(ensemble.members)} networks that answer together"


def _members(ensemble: Ensemble) -> str:
    """The networks, and the setting with which they answer."""
    rows = "\n".join(
        f"| `{member.weights}` | {member.provenance.run} | {'all' if member.fold is None else member.fold} | "
        f"{member.checkpoint} | {member.provenance.commit} | `{member.provenance.weights_sha256[:16]}` |"
        for member in ensemble.members
    )
    setting = "\n".join(f"| `{field}` | {value} |" for field, value in ensemble.setting.items())
    chosen = (
        f"""
## Setting

What a sweep chose, in place of the recipe's own.

| field | value |
|---|---|
{setting}
"""
        if setting
        else ""
    )
    return f"""
## Networks

| file | run | fold | checkpoint | commit | SHA-256 of the weights |
|---|---|---|---|---|---|
{rows}
{chosen}"""


def _head(run: Run, recipe: Recipe, name: str, kind: str) -> str:
    """What every card begins with."""
    classes = first_few(run.classes, 20)
    spacing = " x ".join(f"{side:g}" for side in recipe.grid.spacing_mm)
    window = " x ".join(map(str, recipe.inference.window_vox))
    return f"""# {run.name}

A 3D CT {recipe.task} {kind}, packaged by voxray. It answers: {classes}.

    voxray predict {name} SCAN... -o ANSWERS

| | |
|---|---|
| recipe | {recipe.name}: {recipe.about or "no description"} |
| input | CT in Hounsfield units, resampled to {spacing} mm, windows of {window} voxels |
| trained on | {run.dataset}, licence {run.licence}, which binds these weights too |
| code | voxray {run.voxray_version}, commit {run.commit} |

For research. It is no medical device: nobody has shown that it is safe or of use for any patient. It knows only what
its training data showed, and answers confidently on scans unlike them.
"""


def _scored(score: Evaluation | None) -> str:
    """The metrics over all classes of single networks on cases that they were not trained on."""
    if score is None:
        return ""
    rows = "\n".join(
        f"| {name} | {value:.3f} | {_interval(score.intervals.get(name))} |"
        for name, value in score.metrics.items()
        if "/" not in name and math.isfinite(value)
    )
    return f"""
## Out of fold

Each of {len(score.cases)} cases of {score.dataset}, answered by the one network that was not trained on it, with the
recipe's own setting. All of them together have not been measured by this.

| metric | value | 95 % interval |
|---|---|---|
{rows}
"""


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _cell(value: float | None) -> str:
    return "not run here" if value is None else f"{value:g}"
