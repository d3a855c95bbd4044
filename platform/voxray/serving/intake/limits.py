"""Limits: what an upload may bring, and what reading it may cost."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from voxray.core.config import Config

GIB = 2**30


class Limits(Config):
    """What is refused: for its size alone, before or while it is read, or for its values."""

    upload_bytes: PositiveInt = 4 * GIB
    """Of one upload, all its files together."""
    entries: PositiveInt = 20_000
    """Files of one upload, those within archives included."""
    expanded_bytes: PositiveInt = 8 * GIB
    """Of one upload, after unpacking its archives."""
    expansion_ratio: float = Field(default=200.0, ge=1.0)
    """Unpacked bytes to packed ones; what unpacks to less than `expansion_free_bytes` may have any."""
    expansion_free_bytes: PositiveInt = 64 * 2**20
    """A volume of one value packs a thousandfold; up to this size that does no harm."""
    voxels: PositiveInt = 1024 * 1024 * 2048
    """Of one scan."""
    parse_memory_bytes: PositiveInt = 6 * GIB
    """Of the process that reads one upload, beyond what its libraries take."""
    parse_s: PositiveFloat = 300.0
    """For reading one upload, in seconds of the clock and of the processor alike."""
    fetch_s: PositiveFloat = 900.0
    """For one fetch from, or store to, a DICOMweb service."""
    idle_s: PositiveFloat = 60.0
    """Without a byte from the sender before its upload is given up."""
    accept_values: bool = False
    """Whether values that can be no Hounsfield units are taken, with a warning."""
