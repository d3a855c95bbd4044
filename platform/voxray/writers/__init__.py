"""Writers: answers in the forms that hospitals and viewers read: DICOM SEG, SR and RTSTRUCT, and Slicer's Markups."""

from voxray.writers.markups import markups_json
from voxray.writers.rtstruct import write_rtstruct
from voxray.writers.seg import write_seg
from voxray.writers.sr import write_labels_sr, write_sr
from voxray.writers.stamping import Algorithm

__all__ = ["Algorithm", "markups_json", "write_labels_sr", "write_rtstruct", "write_seg", "write_sr"]
