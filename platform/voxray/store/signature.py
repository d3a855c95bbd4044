"""The signature of a case's shard: a digest of everything that it was made from."""

from __future__ import annotations

import hashlib
import json

from voxray.core.recipe import Recipe
from voxray.store.tables import recipe_digest

TILE_VERSION = 2
"""Raised when preprocessing or tiles change: every case is then made anew."""


def signature_of(scan: str, truth: str, patient_id: str, recipe: Recipe) -> str:
    """The signature of a shard that is made from a scan and a truth with these SHA-256 digests."""
    parts = [TILE_VERSION, recipe_digest(recipe), patient_id, scan, truth]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
