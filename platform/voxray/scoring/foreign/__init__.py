"""Predictions that other programs wrote, as arrays; nothing is guessed, and what cannot be used is refused.

LUNA16's CSV gives centres, MONAI's JSON and nnDetection's pickles boxes; all in world millimetres, by case.
"""

from __future__ import annotations

from voxray.scoring.foreign.luna16 import MarkTable, read_marks, read_series
from voxray.scoring.foreign.monai import read_monai
from voxray.scoring.foreign.nndetection import PICKLE_SUFFIX, read_pickles

__all__ = ["PICKLE_SUFFIX", "MarkTable", "read_marks", "read_monai", "read_pickles", "read_series"]
