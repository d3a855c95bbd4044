"""The report of one or several evaluations as one HTML file: pure functions from what is known to the page."""

from voxray.report.compose import Comparisons, compose
from voxray.report.entry import Data, Entry, Scans, Shown, Training

__all__ = ["Comparisons", "Data", "Entry", "Scans", "Shown", "Training", "compose"]
