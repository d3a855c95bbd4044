"""One side of `data_stream.py`, in a process of its own: prints its patches per second over all training workers."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from voxray.core.recipe import Recipe, WindowIntensity
from voxray.recipes import read_recipe
from voxray.store import Store

WARM_PATCHES = 32
LOADERS = 2
"""The peer's loader processes per training worker."""


def voxray_worker(job: dict[str, Any], rank: int) -> float:
    """The stream, normalised and augmented, on one rank."""
    from voxray.distributed.patch_stream import patch_stream
    from voxray.sampling import Schedule
    from voxray.training.step import prepare

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // job["workers"]))
    recipe, store = read_recipe(job["recipe"], job["overrides"]), Store.open(job["store"])
    schedule = Schedule(seed=0, steps_per_epoch=200, batch_size=recipe.optim.batch_size, num_slots=job["workers"])
    stream = patch_stream(store, recipe, store.case_ids, schedule=schedule, epochs=range(1000), slots=(rank,))
    rng = np.random.default_rng(rank)
    sizes = (len(prepare(patches, recipe, rng).images) for patches in stream)
    return _rate(sizes, job["seconds"])


def monai_worker(job: dict[str, Any], rank: int) -> float:
    """A cache of its own and two loader processes, as every rank of MONAI's bundles has them."""
    from monai.data.dataloader import DataLoader
    from monai.data.dataset import CacheDataset
    from monai.data.utils import list_data_collate, no_collation
    from monai.transforms.compose import Compose
    from monai.utils.misc import set_determinism

    set_determinism(rank)
    recipe, store = read_recipe(job["recipe"], job["overrides"]), Store.open(job["store"])
    fixed, drawn = _monai_transforms(recipe)
    data = [_as_dictionary(store, case_id, recipe) for case_id in store.case_ids]
    cache = CacheDataset(data, Compose([*fixed, *drawn]), cache_rate=1.0, num_workers=0, progress=False)
    detection = recipe.task == "detection"
    loader = DataLoader(
        cache,
        batch_size=1 if detection else 2,
        shuffle=True,
        num_workers=LOADERS,
        persistent_workers=True,
        collate_fn=no_collation if detection else list_data_collate,
    )
    batches = itertools.chain.from_iterable(loader for _ in itertools.count())
    return _rate((_count(batch) for batch in batches), job["seconds"])


def _rate(sizes: Iterable[int], seconds: float) -> float:
    """Patches per second, once the first have come."""
    begin = done = None
    for size in sizes:
        if done is None or done < 0:
            done = (-WARM_PATCHES if done is None else done) + size
            if done >= 0:
                begin, done = time.perf_counter(), 0
            continue
        done += size
        assert begin is not None
        if time.perf_counter() - begin >= seconds:
            break
    assert begin is not None
    assert done is not None
    return done / (time.perf_counter() - begin)


def _count(batch: Any) -> int:
    """Patches in a batch: a list of lists of dictionaries, or one dictionary of stacked tensors."""
    if isinstance(batch, dict):
        return len(batch["image"])
    return sum(len(one) if isinstance(one, list) else 1 for one in batch)


def _as_dictionary(store: Store, case_id: str, recipe: Recipe) -> dict[str, Any]:
    case = store.read_case(case_id)
    image = torch.from_numpy(case.image.voxels.astype(np.float32))[None]
    if recipe.task == "segmentation":
        assert case.labels is not None
        return {"image": image, "label": torch.from_numpy(case.labels)[None]}
    return {
        "image": image,
        "box": torch.from_numpy(case.boxes.astype(np.float32)),
        "label": torch.from_numpy(case.classes),
    }


def _monai_transforms(recipe: Recipe) -> tuple[list[Any], list[Any]]:
    from monai.transforms.croppad.dictionary import RandCropByPosNegLabeld
    from monai.transforms.intensity.dictionary import ScaleIntensityRanged

    window = recipe.intensity
    assert isinstance(window, WindowIntensity)
    fixed = [ScaleIntensityRanged(["image"], window.low_hu, window.high_hu, 0.0, 1.0, clip=True)]
    size, number = recipe.patch.size_vox, recipe.patch.per_tile
    if recipe.task == "detection":
        return fixed, _monai_detection(recipe)
    crop = RandCropByPosNegLabeld(
        ["image", "label"], "label", spatial_size=size, pos=1, neg=1, num_samples=number, image_key="image"
    )
    return fixed, [crop]


def _monai_detection(recipe: Recipe) -> list[Any]:
    """The lung bundle's random transforms, in its order, with the recipe's numbers."""
    from monai.apps.detection.transforms import dictionary as boxes
    from monai.transforms.intensity import dictionary as intensity
    from monai.transforms.spatial.dictionary import RandRotated
    from monai.transforms.utility.dictionary import DeleteItemsd

    config = recipe.augment
    names: dict[str, Any] = {"image_keys": "image", "box_keys": "box", "box_ref_image_keys": "image"}
    sigmas: dict[str, Any] = {f"sigma_{axis}": config.blur_sigma_vox for axis in "xyz"}
    angle = float(np.deg2rad(config.rotate_deg))
    return [
        boxes.RandCropBoxByPosNegLabeld(
            "image",
            "box",
            "label",
            spatial_size=recipe.patch.size_vox,
            whole_box=True,
            num_samples=recipe.patch.per_tile,
        ),
        boxes.RandZoomBoxd(
            **names,
            prob=config.zoom_p,
            min_zoom=config.zoom[0],
            max_zoom=config.zoom[1],
            padding_mode="constant",
            keep_size=True,
        ),
        boxes.ClipBoxToImaged("box", "label", "image", remove_empty=True),
        *(boxes.RandFlipBoxd(**names, prob=config.flip_p, spatial_axis=axis) for axis in config.flip_axes),
        boxes.RandRotateBox90d(**names, prob=config.rot90_p, max_k=3, spatial_axes=(0, 1)),
        boxes.BoxToMaskd("box", "mask", "label", "image", min_fg_label=0, ellipse_mask=True),
        RandRotated(
            ["image", "mask"],
            mode=["nearest", "nearest"],
            prob=config.rotate_p,
            range_x=angle,
            range_y=angle,
            range_z=angle,
            keep_size=True,
            padding_mode="zeros",
        ),
        boxes.MaskToBoxd("box", "mask", "label", min_fg_label=0),
        DeleteItemsd("mask"),
        intensity.RandGaussianNoised("image", prob=config.noise_p, mean=0.0, std=config.noise_sd),
        intensity.RandGaussianSmoothd("image", prob=config.blur_p, **sigmas),
        intensity.RandScaleIntensityd("image", prob=config.scale_p, factors=config.scale),
        intensity.RandShiftIntensityd("image", prob=config.shift_p, offsets=config.shift),
        intensity.RandAdjustContrastd("image", prob=config.gamma_p, gamma=config.gamma),
    ]


def _on_ray(job: dict[str, Any]) -> float:
    from voxray.distributed.cluster import connect
    from voxray.distributed.patch_stream import reader_cpus
    from voxray.distributed.placement import require_cpus

    with connect():
        import ray

        require_cpus(job["workers"] + reader_cpus(job["workers"]), "the benchmark")
        task = ray.remote(num_cpus=1)(voxray_worker)
        return float(sum(ray.get([task.remote(job, rank) for rank in range(job["workers"])])))


def _in_processes(job: dict[str, Any]) -> float:
    context = multiprocessing.get_context("spawn")
    rates = context.SimpleQueue()
    ranks = [context.Process(target=_put_rate, args=(job, rank, rates)) for rank in range(job["workers"])]
    for process in ranks:
        process.start()
    return float(sum(rates.get() for _ in ranks))


def _put_rate(job: dict[str, Any], rank: int, rates: Any) -> None:
    """The rate, and out at once: loader processes that are asked to stop may abort, and take this one with them."""
    rates.put(monai_worker(job, rank))
    os._exit(0)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asked = json.loads(sys.argv[1])
    print(_on_ray(asked) if asked["side"] == "voxray" else _in_processes(asked))
