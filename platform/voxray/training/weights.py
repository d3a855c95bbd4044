"""Weights that were trained elsewhere, such as MONAI's published ones, as a run that predicts like any other.

Files are read as plain tensors only (``weights_only=True``, without any way round): no code in a weights file is run.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from voxray import __version__
from voxray.config import to_json
from voxray.errors import ConfigError, DataError
from voxray.recipe import Recipe
from voxray.recipes import published, read_recipe
from voxray.run import Run
from voxray.training.checkpoint import Checkpoint, find_state, load_weights, write_checkpoint

_WRAPPINGS = ("model", "state_dict", "network")
"""Keys under which others keep the network's weights beside an optimizer's."""
_PREFIXES = ("module.", "network.")
"""What data-parallel training and MONAI's detector put before every name."""


def import_published(path: Path, name: str, output: Path, *, overrides: Sequence[str] = ()) -> Run:
    """The run that `output` holds afterwards, from the weights that were published for the recipe `name`.

    The recipe gets what they need it to be: anchors rounded and half a voxel up, for the nodule detector.
    """
    known = published(name)
    recipe = read_recipe(name, [*known.overrides, *overrides])
    return import_weights(path, recipe, known.classes, output, dataset=known.dataset, licence=known.licence)


def import_weights(
    path: Path, recipe: Recipe, classes: Sequence[str], output: Path, *, dataset: str, licence: str
) -> Run:
    """The run that `output` holds afterwards: the recipe's network with the weights of a .pt or .safetensors file.

    Not one weight may be missing, left over or of another shape; the DataError names it.
    """
    if find_state(output) is not None:
        raise ConfigError(f"{output}: holds a run already; give another folder.")
    network: nn.Module = recipe.network.build(recipe, len(classes))
    load_weights(network, read_weights_file(path), where=str(path))
    run = Run(
        name=f"{recipe.name} from {path.name}",
        dataset=dataset,
        licence=licence,
        classes=tuple(classes),
        recipe=json.loads(to_json(recipe)),
        voxray_version=__version__,
    )
    write_checkpoint(output, Checkpoint(run, network.state_dict(), epochs_done=0, finished=True))
    return run


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """The named tensors of a state dict; one wrapping and one prefix that others are known to add are taken off."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give a weights file such as the model.pt of a MONAI bundle.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    inner = next((content[key] for key in _WRAPPINGS if _is_weights(content.get(key))), content)
    if not _is_weights(inner):
        raise ConfigError(
            f"{path}: must hold a network's state dict (tensors by name), got {_listed(content)}; "
            f"save model.state_dict() alone."
        )
    bad = [key for key, value in inner.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise DataError(
            "weights.not_finite",
            f"{path}: {bad[0]} holds values that are not finite.",
            remedy="Take a checkpoint from before training diverged.",
        )
    prefix = next((text for text in _PREFIXES if all(key.startswith(text) for key in inner)), "")
    return {key.removeprefix(prefix): value for key, value in inner.items()}


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TorchScript archive.*")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{path}: holds more than plain tensors, and voxray runs no code from a weights file; "
            f"save model.state_dict() alone."
        ) from None
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        if "TorchScript" in str(error):
            raise ConfigError(
                f"{path}: is a TorchScript program, not weights; give the model.pt that lies beside it."
            ) from None
        raise DataError(
            "weights.damaged", f"{path}: is not a readable .pt file.", remedy="Download or copy it again."
        ) from None
    return content if isinstance(content, Mapping) else {"": content}


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (SafetensorError, OSError, ValueError):
        raise DataError(
            "weights.damaged", f"{path}: is not a readable .safetensors file.", remedy="Download or copy it again."
        ) from None


def _is_weights(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _listed(content: Mapping[str, Any]) -> str:
    parts = [f"{key or 'one value'}: {type(value).__name__}" for key, value in list(content.items())[:3]]
    return ", ".join(parts) or "nothing"
