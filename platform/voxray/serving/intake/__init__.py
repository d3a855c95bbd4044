"""Intake: what is uploaded becomes a checked study, or a refusal with a code; nothing of the patient is in either.

receive   (the HTTP process)    streams to disk, counted, under our own names; nothing is parsed
parse     (any process)         forks a confined child: `unpack` -> `arrange` -> `identity` -> readers -> volume.npy
dicomweb  (any process)         the same child fetches from, and stores to, archives that are allowed
"""
