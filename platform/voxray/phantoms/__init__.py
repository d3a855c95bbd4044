"""Phantoms: generated scans with their truth, to try everything on where no data may leave its place."""

from voxray.phantoms.kinds import KINDS, SIZES, PhantomKind, draw_phantom
from voxray.phantoms.phantom import Phantom
from voxray.phantoms.write import write_toy

__all__ = ["KINDS", "SIZES", "Phantom", "PhantomKind", "draw_phantom", "write_toy"]
