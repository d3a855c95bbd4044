"""The kinds of phantom; a new one is a file with a draw function, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from voxray.core.errors import ConfigError
from voxray.phantoms import abdomen, cubes, thorax
from voxray.phantoms.phantom import Phantom

Size = Literal["small", "large"]
SIZES: tuple[Size, ...] = ("small", "large")
"""`small`: a coarse scan (2.1 to 2.4 mm; cubes of 96 voxels), made in a second. `large`: about 1 mm (256 voxels)."""


class Draw(Protocol):
    """Draws one phantom of a kind."""

    def __call__(self, rng: np.random.Generator, index: int, *, size: str) -> Phantom:
        """The `index`-th phantom; all that is random comes from `rng`."""
        ...


@dataclass(frozen=True)
class PhantomKind:
    """How a phantom is drawn, and the class names of its boxes and of its label map."""

    draw: Draw
    objects: tuple[str, ...]
    structures: tuple[str, ...]


KINDS: Mapping[str, PhantomKind] = {
    "thorax": PhantomKind(thorax.draw_thorax, thorax.OBJECTS, thorax.STRUCTURES),
    "abdomen": PhantomKind(abdomen.draw_abdomen, abdomen.OBJECTS, abdomen.STRUCTURES),
    "cubes": PhantomKind(cubes.draw_cubes, cubes.OBJECTS, cubes.STRUCTURES),
}


def draw_phantom(kind: str, index: int, *, seed: int = 0, size: str = "small") -> Phantom:
    """The `index`-th phantom of a kind: the same for the same words, whatever else is drawn."""
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if size not in SIZES:
        raise ConfigError(f"size must be one of {', '.join(SIZES)}, got {size!r}.")
    rng = np.random.default_rng([seed, list(KINDS).index(kind), index])
    return KINDS[kind].draw(rng, index, size=size)
