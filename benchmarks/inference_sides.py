"""The two sides of `inference.py`, each run in a process of its own: ``inference_sides.py SIDE JOB.json``.

A job's scan is read, answered and written; what is said is the time between those files, the better of two turns, and
the process's peak memory. Imports, weights and one window to warm up come before the clock starts.

The peers are the published bundles' inference pipelines as their configurations have them: MONAI's dictionary
transforms, its sliding windows, Invertd, SaveImaged; only `Spacingd` keeps edges (`scale_extent`), as voxray does, so
that the two sides' voxels lie in the same places and masks can be compared.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.recipes import read_recipe


@dataclass(frozen=True)
class Job:
    """One scan to answer with one network."""

    recipe: str
    num_classes: int
    weights: str
    scan: str
    answer: str
    """The file to write: a label map, or boxes in LPS mm as .npz."""
    overrides: tuple[str, ...] = ()
    int8: str = ""
    """The network as `voxray export --precision int8` writes it, for where precision is free."""
    turns: int = 2
    """Of which the faster counts: in the first a process still gets its memory."""

    def network(self) -> tuple[Recipe, torch.nn.Module]:
        """The recipe and the network with its weights."""
        recipe = read_recipe(self.recipe, self.overrides)
        network: torch.nn.Module = recipe.network.build(recipe, self.num_classes)
        network.load_state_dict(load_file(self.weights))
        return recipe, network.eval()


def voxray_side(job: Job) -> Callable[[], None]:
    """Ready to read, answer and write as `voxray predict` does."""
    from voxray.inference.predictor import Predictor
    from voxray.readers import read_volume, write_nifti
    from voxray.runtimes import choose_runtime, network_of, open_runtime

    recipe, network = job.network()
    classes = tuple(f"class_{index}" for index in range(job.num_classes))
    run = Run(name="bench", dataset="none", licence="none", classes=classes, recipe={}, voxray_version="0")
    opened = network_of(recipe, network)
    if job.int8:
        opened = opened.with_files({("openvino", "int8"): Path(job.int8)})
        choice = choose_runtime("openvino", precision="int8")
    else:
        choice = choose_runtime("auto", precision="fp32")
    engine = open_runtime(choice.runtime, opened, precision=choice.precision)
    predictor = Predictor(run, recipe, engine)
    engine(warm_up(recipe))

    def answer() -> None:
        found = predictor.predict(read_volume(Path(job.scan)))
        if found.labels is not None:
            write_nifti(found.labels, Path(job.answer))
        elif found.detections is not None:
            np.savez(job.answer, boxes=found.world.boxes, scores=found.world.scores)

    return answer


def monai_segmentation(job: Job) -> Callable[[], None]:
    """The bundles' inference.json: spleen for a window intensity, wholeBody for the z-score."""
    from monai.inferers.utils import sliding_window_inference

    mt: Any = importlib.import_module("monai.transforms")
    recipe, network = job.network()
    config, spleen = recipe.inference, recipe.intensity.kind == "window"
    before = chain(recipe)
    invert = mt.Invertd(
        "pred", transform=before, orig_keys="image", nearest_interp=not spleen, to_tensor=True, device="cpu"
    )
    argmax = mt.AsDiscreted("pred", argmax=True)
    save = mt.SaveImaged(
        "pred",
        output_dir=str(Path(job.answer).parent),
        output_postfix=Path(job.answer).name.removesuffix(".nii.gz"),
        separate_folder=False,
        print_log=False,
    )
    softmax = mt.Activationsd("pred", softmax=True)
    after = mt.Compose([softmax, invert, argmax, save] if spleen else [softmax, argmax, invert, save])
    with torch.inference_mode():
        network(warm_up(recipe))

    def answer() -> None:
        data: Any = before({"image": job.scan})
        with torch.inference_mode():
            data["pred"] = sliding_window_inference(
                data["image"][None],
                config.window_vox,
                config.batch_size,
                lambda images: network(images).logits,
                overlap=config.overlap,
                mode=config.blend,
                padding_mode=config.padding,
            )[0]
            after(data)

    return answer


def monai_detection(job: Job) -> Callable[[], None]:
    """The lung bundle's inference.json: the whole image where it has no more voxels than the window, else windows."""
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape

    recipe, network = job.network()
    assert recipe.anchors is not None

    class Maps(torch.nn.Module):
        """The network with the outputs that MONAI's detector asks for."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
            """Maps by key, finest first."""
            output = self.network(images)
            return {"classification": list(output.class_logits), "box_regression": list(output.box_deltas)}

    maps: Any = Maps()
    maps.spatial_dims, maps.num_classes, maps.num_anchors = 3, job.num_classes, len(recipe.anchors.base_shapes_vox)
    maps.size_divisible = recipe.network.stride_vox
    anchors = AnchorGeneratorWithAnchorShape(
        feature_map_scales=[int(scale) for scale in recipe.anchors.level_scales],
        base_anchor_shapes=[list(shape) for shape in recipe.anchors.base_shapes_vox],
    )
    detector = RetinaNetDetector(maps, anchors, size_divisible=recipe.network.stride_vox).eval()
    detector.set_box_selector_parameters(
        score_thresh=recipe.inference.candidate_floor,
        topk_candidates_per_level=recipe.inference.candidates_per_level,
        nms_thresh=recipe.merge.tile_iou,  # type: ignore[union-attr]
        detections_per_img=recipe.merge.max_detections,  # type: ignore[union-attr]
    )
    before = chain(recipe)
    with torch.inference_mode():
        network(warm_up(recipe))

    def answer() -> None:
        data: Any = before({"image": job.scan})
        with torch.inference_mode():
            found = detector([data["image"].as_tensor()], use_inferer=False)[0]
        boxes = in_lps(found[detector.target_box_key].numpy(), data["image"].affine.numpy())
        np.savez(job.answer, boxes=boxes, scores=found[detector.pred_score_key].numpy())

    return answer


def chain(recipe: Recipe) -> Any:
    """The bundles' preprocessing from a file to the network's input."""
    mt: Any = importlib.import_module("monai.transforms")
    intensity: list[Any] = (
        [mt.ScaleIntensityRanged("image", recipe.intensity.low_hu, recipe.intensity.high_hu, 0, 1, clip=True)]
        if recipe.intensity.kind == "window"
        else [mt.NormalizeIntensityd("image", nonzero=True), mt.ScaleIntensityd("image", -1.0, 1.0)]
    )
    spacing = {"pixdim": recipe.grid.spacing_mm, "mode": "bilinear", "scale_extent": True, "align_corners": True}
    return mt.Compose(
        [
            mt.LoadImaged("image"),
            mt.EnsureChannelFirstd("image"),
            mt.Orientationd("image", axcodes="RAS", labels=None),
            mt.Spacingd("image", **spacing),
            *intensity,
            mt.EnsureTyped("image"),
        ]
    )


def warm_up(recipe: Recipe) -> torch.Tensor:
    """A patch that is large enough to warm up on, and no larger than the recipe's window."""
    x, y, z = (min(96, side) for side in recipe.inference.window_vox)
    return torch.zeros(1, 1, x, y, z)


def in_lps(boxes: Any, affine: Any) -> Any:
    """Edge voxels of an image with a RAS affine -> LPS mm; an image's affine is of voxel centres."""
    low, high = (
        (np.concatenate([corner - 0.5, np.ones((len(corner), 1))], axis=1) @ affine.T)[:, :3] * (-1, -1, 1)
        for corner in (boxes[:, :3], boxes[:, 3:])
    )
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=1)


def main() -> None:
    """Runs one side of one job and prints seconds and GiB as JSON."""
    side, path = sys.argv[1:]
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    job = Job(**{**data, "overrides": tuple(data["overrides"])})
    answer = SIDES[side](job)
    taken = []
    for _ in range(job.turns):
        begin = time.perf_counter()
        answer()
        taken.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": min(taken), "peak_gib": peak_gib()}))


def peak_gib() -> float:
    """The most memory that this process has held. (The kernel's maxrss would count the parent's.)"""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20


def written(job: Job, path: Path) -> Path:
    """The job as a file that `main` reads."""
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    return path


SIDES = {"voxray": voxray_side, "monai_segmentation": monai_segmentation, "monai_detection": monai_detection}

if __name__ == "__main__":
    main()
