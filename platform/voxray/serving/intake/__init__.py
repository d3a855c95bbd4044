"""Intake: what is uploaded becomes a checked study, or a refusal with a code; nothing of the patient is in either.

receive   (the door's process)  streams to disk, counted, under our own names; nothing is parsed
parse     (any process)         forks a confined child: `unpack` -> `arrange` -> `identity` -> readers -> volume.npy
dicomweb  (any process)         the same child fetches from, and stores to, archives that are allowed
"""

from voxray.serving.intake.codes import STATUS, status_of
from voxray.serving.intake.confined import warm_up
from voxray.serving.intake.dicomweb import Access, fetch, store
from voxray.serving.intake.limits import Limits
from voxray.serving.intake.parse import parse, take_in
from voxray.serving.intake.receive import Part, Received, receive
from voxray.serving.intake.study import SOURCE, VOLUME, StudyInfo, read_study, series_handle, series_uid_of

__all__ = [
    "SOURCE",
    "STATUS",
    "VOLUME",
    "Access",
    "Limits",
    "Part",
    "Received",
    "StudyInfo",
    "fetch",
    "parse",
    "read_study",
    "receive",
    "series_handle",
    "series_uid_of",
    "status_of",
    "store",
    "take_in",
    "warm_up",
]
