"""A run as a MONAI bundle, which ``python -m monai.bundle run --config_file configs/inference.json`` executes.

A segmentation bundle is MONAI's own parts alone: its network with our weights (the names are the same), its
transforms and its sliding window. A detection bundle asks voxray, which must be installed: MONAI's own detector needs
torchvision, and MONAI has no parts for how ours covers a scan. Weights travel as safetensors in both.

    configs/inference.json   configs/metadata.json   docs/README.md   models/model.safetensors (or models/package)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from voxray.core.errors import ConfigError, DataError
from voxray.core.recipe import NetworkConfig, Recipe, WindowIntensity
from voxray.core.run import Run
from voxray.models.segresnet import SegResNetConfig
from voxray.models.unet import UNetConfig

WEIGHTS = "models/model.safetensors"
PACKAGE = "models/package"
_NEAR = 1e-4


def write_segmentation_bundle(folder: Path, run: Run, recipe: Recipe, module: nn.Module) -> None:
    """The bundle's files; a DataError where MONAI's network does not answer as ours does."""
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    weights = {name: value.contiguous() for name, value in module.state_dict().items()}
    safetensors.torch.save_file(weights, folder / WEIGHTS)
    config = segmentation_config(recipe, len(run.classes))
    _require_same(config["network_def"], recipe, module)
    _write(folder, config, run, recipe)


def write_detection_bundle(folder: Path, run: Run, recipe: Recipe) -> None:
    """The configurations around the package that lies in `PACKAGE`."""
    for name in ("configs", "docs"):
        (folder / name).mkdir()
    _write(folder, detection_config(), run, recipe)


def segmentation_config(recipe: Recipe, num_classes: int) -> dict[str, Any]:
    """``inference.json`` of MONAI's own parts."""
    config = recipe.inference
    return {
        **_head("from safetensors.torch import load_file", "import numpy", "import torch"),
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network_definition(recipe.network, num_classes + 1),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _before(recipe)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': scan} for scan in @scans]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(config.window_vox),
            "sw_batch_size": config.batch_size,
            "overlap": config.overlap,
            "mode": config.blend,
            "padding_mode": config.padding,
        },
        "postprocessing": {"_target_": "Compose", "transforms": _after()},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        "initialize": [
            f"$@network_def.load_state_dict(load_file(@bundle_root + '/{WEIGHTS}'))",
        ],
        "run": ["$@evaluator.run()"],
    }


def detection_config() -> dict[str, Any]:
    """``inference.json`` that asks voxray."""
    return {
        **_head(
            "from pathlib import Path",
            "from voxray.commands.predict import predict",
            "from voxray.core.progress import open_progress",
        ),
        "package": f"$@bundle_root + '/{PACKAGE}'",
        "run": [
            "$predict(@package, [Path(scan) for scan in @scans], Path(@output_dir), progress=open_progress())",
        ],
    }


def network_definition(network: NetworkConfig, num_outputs: int) -> dict[str, Any]:
    """MONAI's own network with the same parameters."""
    if isinstance(network, UNetConfig):
        return {
            "_target_": "UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": num_outputs,
            "channels": list(network.channels),
            "strides": [step if isinstance(step, int) else list(step) for step in network.strides],
            "num_res_units": network.num_res_units,
            "norm": network.norm,
            "dropout": network.dropout,
        }
    if isinstance(network, SegResNetConfig):
        return {
            "_target_": "SegResNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": num_outputs,
            "init_filters": network.init_filters,
            "blocks_down": list(network.blocks_down),
            "blocks_up": list(network.blocks_up),
            "dropout_prob": network.dropout,
        }
    raise ConfigError(f"--as monai-bundle: MONAI has no network of kind {network.kind!r}; export without --as.")


def metadata(run: Run, recipe: Recipe) -> dict[str, Any]:
    """``metadata.json``, as MONAI's bundle specification wants it."""
    import monai
    import numpy as np

    labels = {"0": "background", **{str(label): name for label, name in enumerate(run.classes, start=1)}}
    classes = labels if recipe.task == "segmentation" else {str(k): name for k, name in enumerate(run.classes)}
    window = recipe.inference.window_vox
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by voxray {run.voxray_version}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"safetensors": safetensors.__version__, "nibabel": "5.4"},
        "task": f"3D CT {recipe.task}",
        "description": recipe.about or recipe.name,
        "authors": "see docs/README.md",
        "copyright": f"weights trained on {run.dataset}, licence {run.licence}",
        "data_source": run.dataset,
        "intended_use": "research; not a medical device",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": 1,
                    "spatial_shape": list(window),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image" if recipe.task == "segmentation" else "object",
                    "format": recipe.task,
                    "num_channels": len(classes),
                    "spatial_shape": list(window),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": classes,
                }
            },
        },
    }


def _head(*imports: str) -> dict[str, Any]:
    return {
        "imports": ["$import glob", *(f"${line}" for line in imports)],
        "bundle_root": ".",
        "dataset_dir": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "scans": "$sorted(glob.glob(@dataset_dir + '/*.nii.gz'))",
    }


def _before(recipe: Recipe) -> list[dict[str, Any]]:
    """From a file to what the network sees."""
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": recipe.grid.orientation},
        {"_target_": "Spacingd", "keys": "image", "pixdim": list(recipe.grid.spacing_mm), "mode": "bilinear"},
        *_intensity(recipe),
    ]


def _after() -> list[dict[str, Any]]:
    """From logits to a label map on the scan's own grid: labels go back, not classes."""
    return [
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": True,
            "to_tensor": True,
        },
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "trans",
            "output_dtype": "$numpy.uint8",
            "resample": False,
            "separate_folder": False,
        },
    ]


def _intensity(recipe: Recipe) -> list[dict[str, Any]]:
    intensity = recipe.intensity
    if isinstance(intensity, WindowIntensity):
        return [
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": intensity.low_hu,
                "a_max": intensity.high_hu,
                "b_min": 0.0,
                "b_max": 1.0,
                "clip": True,
            }
        ]
    return [
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
        {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0},
    ]


def _require_same(definition: dict[str, Any], recipe: Recipe, module: nn.Module) -> None:
    from monai.bundle.config_parser import ConfigParser

    theirs: nn.Module = ConfigParser({"network": definition}).get_parsed_content("network")
    theirs.load_state_dict(module.state_dict())
    sides = [2 * step for step in recipe.network.stride_vox]
    images = torch.rand((1, 1, *sides), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = module.eval()(images).logits, theirs.eval()(images)
    apart = float((expected - found).abs().max())
    if not apart <= _NEAR * max(1.0, float(expected.abs().max())):
        raise DataError(
            "export.bundle",
            f"MONAI's {definition['_target_']} differs from the run's network by {apart:.3g}; nothing was written.",
            remedy="Use the MONAI version that voxray is tested with (constraints.txt), or export without --as.",
        )


def _write(folder: Path, config: dict[str, Any], run: Run, recipe: Recipe) -> None:
    for name, content in (("inference", config), ("metadata", metadata(run, recipe))):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "docs" / "README.md").write_text(_card(run, recipe), encoding="utf-8")


def _card(run: Run, recipe: Recipe) -> str:
    needs = "monai, pytorch-ignite, fire, nibabel and safetensors"
    if recipe.task == "detection":
        needs = "monai, fire and voxray"
    return f"""# {run.name}

A 3D CT {recipe.task} model of voxray as a MONAI bundle. It answers: {", ".join(run.classes)}.

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS --output_dir ANSWERS

Run it in this folder, or give `--bundle_root`. `SCANS` holds `*.nii.gz` in Hounsfield units. It needs {needs}.

Trained on {run.dataset}, licence {run.licence}, which binds these weights too. For research: it is no medical device.
"""
