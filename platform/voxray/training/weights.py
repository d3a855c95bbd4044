"""Weights that were trained elsewhere, such as MONAI's published ones, as a run that predicts like any other.

Files are read as plain tensors only (``weights_only=True``, without any way round): no code in a weights file is run.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from voxray import __version__
from voxray.core.config import to_json
from voxray.core.errors import ConfigError, DataError
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.core.storage import Location, Place
from voxray.core.written import require_empty
from voxray.dataset.naming import numbered_names
from voxray.recipes import published, read_recipe
from voxray.training.checkpoint import Checkpoint, find_state, load_weights, write_checkpoint

_WRAPPINGS = ("model", "state_dict", "network")
"""Keys under which others keep the network's weights beside an optimizer's."""
_PREFIXES = ("module.", "network.")
"""What data-parallel training and MONAI's detector put before every name."""


def import_published(path: Path, name: str, output: Location, *, overrides: Sequence[str] = ()) -> Run:
    """The run that `output` holds afterwards, from the weights that were published for the recipe `name`.

    The recipe gets what they need it to be: anchors rounded and half a voxel up, for the nodule detector.
    """
    known = published(name)
    recipe = read_recipe(name, [*known.overrides, *overrides])
    return import_weights(path, recipe, known.classes, output, dataset=known.dataset, licence=known.licence)


def import_weights(
    path: Path, recipe: Recipe, classes: Sequence[str], output: Location, *, dataset: str, licence: str
) -> Run:
    """The run that `output` holds afterwards: the recipe's network with the weights of a .pt or .safetensors file.

    Not one weight may be missing, left over or of another shape; the DataError names it.
    """
    if find_state(output) is not None:
        raise ConfigError(f"{output}: holds a run already; give another folder.")
    require_empty(Place.of(output), "run")
    _check_names(classes, path, recipe)
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


def _check_names(classes: Sequence[str], path: Path, recipe: Recipe) -> None:
    """Every output needs a name of its own, and the one that the bundle of the weights declares for it."""
    if not all(classes) or len(set(classes)) < len(classes):
        raise ConfigError(f"--classes {','.join(classes)}: must be names that differ, in the order of the outputs.")
    declared = _channel_names(path.absolute().parent.parent / "configs" / "metadata.json")
    if recipe.task != "segmentation" or sorted(declared) != list(range(len(classes) + 1)):
        return
    for channel, name in enumerate(classes, start=1):
        if _plain(declared[channel]) != _plain(name):
            own = ",".join(declared[number] for number in range(1, len(declared)))
            raise ConfigError(
                f"{path}: the bundle's metadata.json calls output {channel} {declared[channel]!r}, the classes given "
                f"{name!r}; give --classes {own[:300]}."
            )


def _channel_names(file: Path) -> dict[int, str]:
    """Output channel -> name, as a MONAI bundle's metadata declares it; nothing where it does not."""
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
        return numbered_names(data["network_data_format"]["outputs"]["pred"]["channel_def"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _plain(name: str) -> str:
    return "_".join(re.findall(r"[a-z0-9]+", name.lower()))


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
