"""From a dataset to cases: `list_cases` finds them without reading a voxel, `load_case` reads one."""

from __future__ import annotations

from voxray.loading.cases import Examination, examine, load_case
from voxray.loading.survey import Survey, list_cases, read_excluded, survey
from voxray.loading.truth_content import CaseContent, case_content, scan_content, truth_content

__all__ = [
    "CaseContent",
    "Examination",
    "Survey",
    "case_content",
    "examine",
    "list_cases",
    "load_case",
    "read_excluded",
    "scan_content",
    "survey",
    "truth_content",
]
