"""Writers: answers in the forms that hospitals and viewers read: DICOM SEG, SR and RTSTRUCT, and Slicer's Markups."""

from voxray.results.writers.markups import markups_json
from voxray.results.writers.rtstruct import write_rtstruct
from voxray.results.writers.seg import write_seg
from voxray.results.writers.sr import write_labels_sr, write_sr
from voxray.results.writers.stamping import Algorithm

__all__ = ["Algorithm", "markups_json", "write_labels_sr", "write_rtstruct", "write_seg", "write_sr"]
