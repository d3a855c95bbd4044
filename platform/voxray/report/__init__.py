"""The report of one or several evaluations as one HTML file: pure functions from what is known to the page."""

from voxray.report.compose import Compared, compose
from voxray.report.entry import Data, Entry, Scans, Shown, Training

__all__ = ["Compared", "Data", "Entry", "Scans", "Shown", "Training", "compose"]
