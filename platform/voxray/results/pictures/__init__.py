"""Pictures of scans with what was found in them and of how training went, as PNG bytes.

Scans are shown as radiologists look at them: from the feet and from the front, so the patient's right is on the left
of the picture; front at the top of an axial slice, head at the top of the others.
"""

from voxray.results.pictures.detections import draw_detections
from voxray.results.pictures.labels import draw_labels
from voxray.results.pictures.montage import Closeup, cut_closeup, draw_montage
from voxray.results.pictures.planes import WINDOWS, GreyWindow
from voxray.results.pictures.sweeps import draw_importance, draw_slices
from voxray.results.pictures.training_curves import draw_curves

__all__ = [
    "WINDOWS",
    "Closeup",
    "GreyWindow",
    "cut_closeup",
    "draw_curves",
    "draw_detections",
    "draw_importance",
    "draw_labels",
    "draw_montage",
    "draw_slices",
]
