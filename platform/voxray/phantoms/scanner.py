"""What a scanner adds to a painted body: where its grid lies, tissue texture, blur and noise."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int16
from scipy import ndimage

from voxray.core.volume import Grid, Vector
from voxray.phantoms.canvas import grid_over
from voxray.phantoms.shapes import turn

_AXES = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "LAS": np.diag([1.0, -1.0, 1.0]),
    "RSP": np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
}
_STORED = ("LPS", "RAS", "LPS", "LAS", "LPS", "RSP")
_TILTED = (False, False, True, False, False, False)

# Hounsfield units -> standard deviation of what is really there and varies from voxel to voxel.
_TEXTURE_AT_HU = (-1000.0, -950.0, -880.0, -600.0, -300.0, -100.0, 0.0, 185.0, 225.0, 400.0)
_TEXTURE_SD_HU = (0.0, 12.0, 26.0, 26.0, 12.0, 8.0, 5.0, 5.0, 38.0, 45.0)


def draw_grid(rng: np.random.Generator, index: int, *, size_mm: Vector, spacing_mm: tuple[float, float]) -> Grid:
    """A grid over `size_mm` (left-right, front-back, feet-head): its storage order and tilt go by the case's index.

    `spacing_mm` is the range of the spacing in plane; slices are up to 1.3 times as far apart.
    """
    plane = round(float(rng.uniform(*spacing_mm)), 3)
    slices = round(plane * float(rng.uniform(1.0, 1.3)), 2)
    axes = _AXES[_STORED[index % len(_STORED)]]
    order = np.abs(axes).argmax(axis=0)
    spacing = np.array([plane, plane, slices])[order]
    size = np.asarray(size_mm)[order]
    if _TILTED[index % len(_TILTED)]:
        axes = turn(0, float(rng.uniform(4, 8))) @ turn(2, float(rng.uniform(-6, 6))) @ axes
    centre = tuple(rng.uniform(-4, 4, size=3))
    return grid_over(_three(centre), _three(size), _three(spacing), axes)


def scan(
    voxels: Float32[np.ndarray, "x y z"], grid: Grid, rng: np.random.Generator, *, noise_hu: float
) -> Int16[np.ndarray, "x y z"]:
    """The painted body as a scanner stores it, in whole HU from -1024 on.

    Texture follows the tissue. Noise is band-limited as filtered back projection leaves it, without the lowest
    frequencies, and strongest where most tissue lies around; so is the cupping of some 5 HU.
    """
    voxel_mm = float(np.prod(grid.spacing_mm) ** (1 / 3))
    texture = _field(voxels.shape, rng, sigma_vox=max(0.5, 2.0 / voxel_mm))
    image = voxels + texture * np.interp(voxels, _TEXTURE_AT_HU, _TEXTURE_SD_HU).astype(np.float32)
    image = ndimage.gaussian_filter(image, max(0.35, 0.55 / voxel_mm), truncate=3)
    depth = _depth(voxels, grid)
    white = rng.standard_normal(voxels.shape, dtype=np.float32)
    fine = ndimage.gaussian_filter(white, 0.55, truncate=3)
    noise = fine - 0.8 * ndimage.gaussian_filter(white, 1.6, truncate=2.5)
    noise *= np.float32(noise_hu / noise.std())
    image += noise * (0.35 + 0.9 * depth) - 6 * (depth - np.float32(0.5))
    stored: Int16[np.ndarray, "x y z"] = np.rint(np.clip(image, -1024, 3071)).astype(np.int16)
    return stored


def _field(shape: tuple[int, ...], rng: np.random.Generator, *, sigma_vox: float) -> Float32[np.ndarray, "x y z"]:
    """Smooth noise with mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma_vox, truncate=2.5)
    unit: Float32[np.ndarray, "x y z"] = field / field.std()
    return unit


def _depth(voxels: Float32[np.ndarray, "x y z"], grid: Grid) -> Float32[np.ndarray, "x y z"]:
    """How much tissue lies around a voxel, 0 to about 1: the body, coarsened and blurred by some 40 mm."""
    coarse = (voxels[::4, ::4, ::4] > -500).astype(np.float32)
    coarse = ndimage.gaussian_filter(coarse, [10 / step for step in grid.spacing_mm])
    factors = [new / old for new, old in zip(voxels.shape, coarse.shape, strict=True)]
    depth: Float32[np.ndarray, "x y z"] = ndimage.zoom(coarse, factors, order=1, output=np.float32)
    return depth


def _three(values: object) -> Vector:
    x, y, z = (float(value) for value in values)  # type: ignore[attr-defined]
    return x, y, z
