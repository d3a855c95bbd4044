"""A network that answers "bright", for both tasks, and scans with one bright sphere to try it on."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from voxray.core.outputs import DetectionOutput, SegmentationOutput
from voxray.core.recipe import NetworkConfig, Recipe, parse_recipe
from voxray.core.run import Run
from voxray.core.volume import Grid, Shape, Vector, Volume

ANCHOR_VOX = 8.0
STRIDE = 4
RAMP_MM = 4.0
SPACING_MM = (1.0, 1.25, 0.8)


class BrightConfig(NetworkConfig):
    """Brighter than half is class 1; or one box around all that is."""

    kind: Literal["bright"] = "bright"
    tasks: ClassVar[tuple[str, ...]] = ("detection", "segmentation")

    def build(self, recipe: Recipe, num_classes: int) -> nn.Module:
        """The network; it has one weight, the threshold."""
        assert num_classes == 1
        return BrightBoxes() if recipe.task == "detection" else BrightLabels()

    @property
    def stride_vox(self) -> Shape:
        """That of the map of boxes."""
        return STRIDE, STRIDE, STRIDE

    @property
    def level_strides_vox(self) -> tuple[Shape, ...]:
        """One level."""
        return ((STRIDE, STRIDE, STRIDE),)


class BrightLabels(nn.Module):
    """Logits of background and of bright."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Positive where the voxel is brighter than the threshold."""
        over = 20 * (images - self.threshold)
        return SegmentationOutput(torch.cat([-over, over], dim=1))


class BrightBoxes(nn.Module):
    """One certain anchor, at the place of the bright ball's centre, with the deltas of its box.

    Centre and sides come from the first and second moments of the brightness (a ball of radius r has the variance
    r * r / 5 along each axis), so they are good to a small part of a voxel. A ball that comes near the window's
    border is left to the window that holds it whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.05))

    def forward(self, images: Tensor) -> DetectionOutput:
        """Maps at a stride of 4 with one anchor of 8 x 8 x 8 voxels a place."""
        batch, _, *sides = images.shape
        places = [side // STRIDE for side in sides]
        logits = images.new_full((batch, 1, *places), -20.0)
        deltas = images.new_zeros((batch, 6, *places))
        for index, image in enumerate(images[:, 0].double()):
            bright = torch.nonzero(image > self.threshold)
            if len(bright) == 0 or (bright == 0).any() or (bright == images.new_tensor(sides) - 1).any():
                continue
            weights = image[tuple(bright.T)] / image[tuple(bright.T)].sum()
            bright = bright.double()
            centre = weights @ (bright + 0.5)
            box_sides = 2 * torch.sqrt(5 * weights @ (bright + 0.5 - centre) ** 2)
            place = (centre / STRIDE).long()
            at = (index, slice(None), *place.tolist())
            logits[at] = 6.0
            from_anchor = (centre - (place + 0.5) * STRIDE) / ANCHOR_VOX
            deltas[at] = torch.cat([from_anchor, torch.log(box_sides / ANCHOR_VOX)]).float()
        return DetectionOutput((logits,), (deltas,))


def ball_sides_mm(radius_mm: float) -> float:
    """What moments give for the spheres of `sphere_scan`: twice sqrt(E[R^5] / E[R^3]) for R = radius ± 2 mm."""
    r, spread = radius_mm, RAMP_MM**2 / 12
    third = r**3 + 3 * r * spread
    fifth = r**5 + 10 * r**3 * spread + 5 * r * RAMP_MM**4 / 80
    return 2 * float(np.sqrt(fifth / third))


def bright_recipe(task: str, **inference: Any) -> Recipe:
    """A recipe with three voxel sides and small overlapping windows."""
    data: dict[str, Any] = {
        "name": f"bright_{task}",
        "grid": {"spacing_mm": SPACING_MM},
        "intensity": {"kind": "window", "low_hu": -1000, "high_hu": 1000},
        "patch": {"size_vox": (32, 32, 32)},
        "network": {"kind": "bright"},
        "loss": {"kind": task},
        "optim": {"rate": 0.1, "epochs": 1, "batch_size": 1},
        "inference": {"window_vox": (48, 48, 48), "overlap": 0.6, "batch_size": 2, **inference},
        "merge": {"kind": task},
    }
    if task == "detection":
        data["anchors"] = {"base_shapes_vox": [(ANCHOR_VOX,) * 3], "level_scales": [1.0]}
    return parse_recipe(data, {"bright": BrightConfig}, where="bright")


def bright_run(recipe: Recipe) -> Run:
    """A run of that recipe."""
    return Run(
        name="bright",
        dataset="spheres",
        licence="CC0-1.0",
        classes=("bright",),
        recipe=recipe.model_dump(mode="json"),
        voxray_version="0",
    )


def sphere_scan(
    turn: Any, *, angles_deg: Vector, spacing_mm: Vector = (0.9, 0.8, 2.1), radius_mm: float = 9.0
) -> tuple[Volume, Vector]:
    """A scan of -1000 HU with a sphere of 1000 HU off its centre, and the sphere's centre in LPS mm.

    The grid's axes are `turn` (a signed permutation) rotated by Euler angles. The border is a ramp of 4 mm, so that
    the half-way surface is where the sphere ends, whatever the voxels.
    """
    rotation = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix() @ turn
    shape, origin = (64, 58, 26), (-40.0, 25.0, 310.0)
    grid = Grid(shape, spacing_mm, origin, tuple(rotation.ravel().tolist()))
    centre = grid.to_world(np.array([[25.0, 33.0, 12.0]]))[0]
    index = np.stack(np.meshgrid(*[np.arange(side) + 0.5 for side in shape], indexing="ij"), axis=-1)
    distance = np.linalg.norm(grid.to_world(index.reshape(-1, 3)) - centre, axis=1).reshape(shape)
    voxels = np.clip((radius_mm - distance) * 2000 / RAMP_MM, -1000, 1000).astype(np.int16)
    return Volume(voxels, grid), (float(centre[0]), float(centre[1]), float(centre[2]))
