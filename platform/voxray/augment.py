"""Random changes of training patches: drawn on the CPU as plain numbers, then applied where the batch lives.

Boxes follow exactly. A linear map A takes an ellipsoid with half-extents h to one with sqrt((A * A) @ (h * h)), so
a box stays the exact box of its inscribed ellipsoid, without a detour over masks. Rotations turn the patient, in
millimetres, whatever the spacing of the voxels.

The order is: rotate and zoom in one resampling, flip, quarter turns; then noise, blur, scale, shift, gamma.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from voxray.core.batch import IGNORED, PADDING, Batch
from voxray.core.recipe import AugmentConfig
from voxray.core.volume import Vector

KEPT_SHARE = 0.5
"""A box of which less remains inside the patch becomes an ignored region: neither object nor background."""

_CPU_ROWS = 8

ISOTROPIC: Vector = (1.0, 1.0, 1.0)


class Draws(NamedTuple):
    """What happens to each of b patches; numbers that change nothing (angle 0, zoom 1, ...) were not drawn."""

    angles_rad: Float64[np.ndarray, "b 3"]
    zoom: Float64[np.ndarray, " b"]
    flips: Bool[np.ndarray, "b 3"]
    quarter_turns: Int64[np.ndarray, " b"]
    """In the x-y plane, from x towards y."""
    noise_sd: Float64[np.ndarray, " b"]
    noise_seed: Int64[np.ndarray, " b"]
    blur_sigma_vox: Float64[np.ndarray, "b 3"]
    scale: Float64[np.ndarray, " b"]
    shift: Float64[np.ndarray, " b"]
    gamma: Float64[np.ndarray, " b"]


def draw(rng: np.random.Generator, config: AugmentConfig, batch_size: int) -> Draws:
    """What to do with each patch of a batch; the same generator state gives the same draws."""

    def happens(probability: float, *more: int) -> Bool[np.ndarray, ...]:
        return rng.random((batch_size, *more)) < probability

    def uniform(low: float, high: float, *more: int) -> Float64[np.ndarray, ...]:
        return rng.uniform(low, high, (batch_size, *more))

    limit = math.radians(config.rotate_deg)
    axes = np.isin(np.arange(3), config.flip_axes)
    return Draws(
        angles_rad=np.where(happens(config.rotate_p)[:, None], uniform(-limit, limit, 3), 0.0),
        zoom=np.where(happens(config.zoom_p), uniform(*config.zoom), 1.0),
        flips=happens(config.flip_p, 3) & axes,
        quarter_turns=np.where(happens(config.rot90_p), rng.integers(1, 4, batch_size), 0),
        noise_sd=np.where(happens(config.noise_p), uniform(0.0, config.noise_sd), 0.0),
        noise_seed=rng.integers(0, 2**62, batch_size),
        blur_sigma_vox=np.where(happens(config.blur_p)[:, None], uniform(*config.blur_sigma_vox, 3), 0.0),
        scale=np.where(happens(config.scale_p), 1.0 + uniform(-config.scale, config.scale), 1.0),
        shift=np.where(happens(config.shift_p), uniform(-config.shift, config.shift), 0.0),
        gamma=np.where(happens(config.gamma_p), uniform(*config.gamma), 1.0),
    )


def apply(batch: Batch, draws: Draws, *, spacing_mm: Vector = ISOTROPIC) -> Batch:
    """The changed batch, on the batch's device; only patches that drew a change pay for it.

    What a rotation or zoom brings in from outside of a patch takes the patch's lowest value, background and no box.
    """
    batch = _affine(batch, draws, spacing_mm)
    batch = _mirrored(batch, draws, spacing_mm)
    images = _noisy(batch.images, draws)
    images = _blurred(images, draws.blur_sigma_vox)
    images = _scaled(images, draws.scale, draws.shift)
    return batch._replace(images=_gamma(images, draws.gamma))


def smooth(images: Float[Tensor, "b 1 x y z"], sigma_vox: Float64[np.ndarray, "b 3"]) -> Float[Tensor, "b 1 x y z"]:
    """Gaussian smoothing with a standard deviation per patch and axis; the border is continued outwards."""
    for axis in range(3):
        radius = math.ceil(3 * float(sigma_vox[:, axis].max(initial=0.0)))
        if radius == 0:
            continue
        taps = _gaussian(sigma_vox[:, axis], radius)
        kernels = torch.as_tensor(taps, dtype=images.dtype, device=images.device)
        shape = [len(images), 1, 1, 1, 1]
        shape[2 + axis] = 2 * radius + 1
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        padded = F.pad(images, padding, mode="replicate").transpose(0, 1)
        images = F.conv3d(padded, kernels.reshape(shape), groups=len(images)).transpose(0, 1)
    return images


def rotation_matrix(angles_rad: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, "3 3"]:
    """The rotation about the x axis, then y, then z, by right-handed angles."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles_rad), np.sin(angles_rad)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    matrix: Float64[np.ndarray, "3 3"] = about_z @ about_y @ about_x
    return matrix


def _affine(batch: Batch, draws: Draws, spacing_mm: Vector) -> Batch:
    drawn = np.flatnonzero((draws.zoom != 1) | draws.angles_rad.any(axis=1))
    if drawn.size == 0:
        return batch
    spacing = np.asarray(spacing_mm)
    maps = np.stack([rotation_matrix(draws.angles_rad[i]) * draws.zoom[i] for i in drawn])
    maps = maps * spacing / spacing[:, None]
    index = torch.as_tensor(drawn, device=batch.images.device)
    sides = batch.images.shape[2:]
    terms = _sampling_terms(np.linalg.inv(maps), sides, batch.images)
    picked = batch.images[index]
    lowest = picked.amin(dim=(1, 2, 3, 4), keepdim=True)
    sampled = _sampled(picked - lowest, terms, "bilinear")
    boxes, classes = _mapped_boxes(batch.boxes[index], batch.classes[index], maps, sides)
    return Batch(
        images=batch.images.index_copy(0, index, sampled.add_(lowest)),
        boxes=batch.boxes.index_copy(0, index, boxes),
        classes=batch.classes.index_copy(0, index, classes),
        labels=None
        if batch.labels is None
        else batch.labels.index_copy(0, index, _nearest(batch.labels[index], terms)),
    )


def _sampling_terms(maps: Float64[np.ndarray, "b 3 3"], sides: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
    """Where `grid_sample` looks, as the sum of a term of x (b x 1 1 3) and one of y and z (b 1 y z 3).

    It measures from the centre in half sides, and names the last axis first.
    """
    halves = np.asarray(sides, np.float64) / 2
    columns = torch.as_tensor((maps / halves[:, None])[:, ::-1].copy(), dtype=like.dtype, device=like.device)
    x, y, z = (
        (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5 - side / 2)[:, None]
        * columns[:, None, :, axis]
        for axis, side in enumerate(sides)
    )
    return x[:, :, None, None], (y[:, :, None] + z[:, None])[:, None]


def _sampled(
    images: Float[Tensor, "b 1 x y z"], terms: tuple[Tensor, Tensor], mode: str
) -> Float[Tensor, "b 1 x y z"]:
    """The images at those places; on a CPU a few rows at a time, as a grid of places outgrows its caches."""
    x, yz = terms
    rows = _CPU_ROWS if images.device.type == "cpu" else x.shape[1]
    grids = (x[:, first : first + rows] + yz for first in range(0, x.shape[1], rows))
    parts = [F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False) for grid in grids]
    return torch.cat(parts, dim=2)


def _nearest(labels: Tensor, terms: tuple[Tensor, Tensor]) -> Tensor:
    return _sampled(labels[:, None].to(terms[0].dtype), terms, "nearest")[:, 0].to(labels.dtype)


def _mapped_boxes(
    boxes: Float[Tensor, "b m 6"], classes: Tensor, maps: Float64[np.ndarray, "b 3 3"], sides: torch.Size
) -> tuple[Float[Tensor, "b m 6"], Tensor]:
    matrix = torch.as_tensor(maps, dtype=boxes.dtype, device=boxes.device)
    middle = torch.tensor(sides, dtype=boxes.dtype, device=boxes.device) / 2
    centre = (boxes[..., :3] + boxes[..., 3:]) / 2 - middle
    half = (boxes[..., 3:] - boxes[..., :3]) / 2
    centre = torch.einsum("bij,bmj->bmi", matrix, centre) + middle
    half = torch.einsum("bij,bmj->bmi", matrix.square(), half.square()).sqrt()
    return _clipped(torch.cat([centre - half, centre + half], dim=-1), classes, sides)


def _clipped(boxes: Tensor, classes: Tensor, sides: torch.Size) -> tuple[Tensor, Tensor]:
    """Boxes cut at the patch's border; what mostly left is ignored, what left wholly is gone."""
    limit = torch.tensor([*sides, *sides], dtype=boxes.dtype, device=boxes.device)
    inside = torch.minimum(boxes.clamp(min=0), limit)
    whole = (boxes[..., 3:] - boxes[..., :3]).prod(dim=-1)
    rest = (inside[..., 3:] - inside[..., :3]).clamp(min=0).prod(dim=-1)
    mostly_left = (classes >= 0) & (rest < KEPT_SHARE * whole)
    classes = torch.where(mostly_left, torch.full_like(classes, IGNORED), classes)
    classes = torch.where(rest <= 0, torch.full_like(classes, PADDING), classes)
    return torch.where((classes == PADDING)[..., None], torch.zeros_like(inside), inside), classes


def _mirrored(batch: Batch, draws: Draws, spacing_mm: Vector) -> Batch:
    """Flips, then quarter turns; all of a patch's are one exchange of x and y and one reversal, copied once."""
    sides = batch.images.shape[2:]
    alike = sides[0] == sides[1] and math.isclose(spacing_mm[0], spacing_mm[1])
    swaps, flips = _as_swap_and_flips(draws, alike)
    if not (swaps.any() or flips.any()):
        return batch
    return Batch(
        images=_moved(batch.images, swaps, flips),
        boxes=_moved_boxes(batch.boxes, swaps, flips, sides),
        classes=batch.classes,
        labels=None if batch.labels is None else _moved(batch.labels[:, None], swaps, flips)[:, 0],
    )


def _as_swap_and_flips(draws: Draws, alike: bool) -> tuple[Bool[np.ndarray, " b"], Bool[np.ndarray, "b 3"]]:
    """Whether x and y change places, and which axes are reversed after that.

    Where x and y are not alike a quarter turn is a half turn: a patch keeps its shape.
    """
    turns = draws.quarter_turns
    swaps = (turns % 2 == 1) & alike
    flips = np.where(swaps[:, None], draws.flips[:, [1, 0, 2]], draws.flips)
    half = (turns != 0) & ~swaps
    reversed_by_turn = np.stack(
        [half | (swaps & (turns == 1)), half | (swaps & (turns == 3)), np.zeros_like(half)], 1
    )
    return swaps, flips ^ reversed_by_turn


def _moved(images: Tensor, swaps: Bool[np.ndarray, " b"], flips: Bool[np.ndarray, "b 3"]) -> Tensor:
    made = torch.empty_like(images)
    for i, (swap, axes) in enumerate(zip(swaps, flips, strict=True)):
        picked = images[i].transpose(1, 2) if swap else images[i]
        made[i] = picked.flip([1 + int(axis) for axis in np.flatnonzero(axes)]) if axes.any() else picked
    return made


def _moved_boxes(
    boxes: Float[Tensor, "b m 6"], swaps: Bool[np.ndarray, " b"], flips: Bool[np.ndarray, "b 3"], sides: torch.Size
) -> Float[Tensor, "b m 6"]:
    swap = torch.as_tensor(swaps, device=boxes.device)[:, None, None]
    flip = torch.as_tensor(flips, device=boxes.device)[:, None]
    boxes = torch.where(swap, boxes[..., [1, 0, 2, 4, 3, 5]], boxes)
    low, high = boxes[..., :3], boxes[..., 3:]
    side = torch.tensor(sides, dtype=boxes.dtype, device=boxes.device)
    return torch.cat([torch.where(flip, side - high, low), torch.where(flip, side - low, high)], dim=-1)


def _noisy(images: Tensor, draws: Draws) -> Tensor:
    drawn = np.flatnonzero(draws.noise_sd)
    if drawn.size == 0:
        return images
    images = images.clone()
    for i in drawn:
        generator = torch.Generator(images.device).manual_seed(int(draws.noise_seed[i]))
        noise = torch.randn(images[i].shape, generator=generator, device=images.device, dtype=images.dtype)
        images[i] += noise * float(draws.noise_sd[i])
    return images


def _blurred(images: Tensor, sigma_vox: Float64[np.ndarray, "b 3"]) -> Tensor:
    drawn = np.flatnonzero(sigma_vox.any(axis=1))
    if drawn.size == 0:
        return images
    index = torch.as_tensor(drawn, device=images.device)
    return images.index_copy(0, index, smooth(images[index], sigma_vox[drawn]))


def _gaussian(sigma_vox: Float64[np.ndarray, " b"], radius: int) -> Float64[np.ndarray, "b k"]:
    """The normal density integrated over each voxel, normalised; a standard deviation of 0 is a single 1."""
    edges = (np.arange(-radius, radius + 2) - 0.5) / np.maximum(sigma_vox, 1e-9)[:, None] / math.sqrt(2)
    taps = np.diff(np.vectorize(math.erf)(edges), axis=1)
    normalised: Float64[np.ndarray, "b k"] = taps / taps.sum(axis=1, keepdims=True)
    return normalised


def _scaled(images: Tensor, scale: Float64[np.ndarray, " b"], shift: Float64[np.ndarray, " b"]) -> Tensor:
    if (scale == 1).all() and (shift == 0).all():
        return images
    factor, offset = (_per_patch(values, images) for values in (scale, shift))
    return images * factor + offset


def _gamma(images: Tensor, gamma: Float64[np.ndarray, " b"]) -> Tensor:
    """Each patch's range raised to a power and put back (MONAI's AdjustContrast)."""
    drawn = np.flatnonzero(gamma != 1)
    if drawn.size == 0:
        return images
    index = torch.as_tensor(drawn, device=images.device)
    picked = images[index]
    low = picked.amin(dim=(1, 2, 3, 4), keepdim=True)
    extent = (picked.amax(dim=(1, 2, 3, 4), keepdim=True) - low).clamp(min=1e-7)
    changed = ((picked - low) / extent) ** _per_patch(gamma[drawn], images) * extent + low
    return images.index_copy(0, index, changed)


def _per_patch(values: Float64[np.ndarray, " b"], like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1, 1, 1, 1)
