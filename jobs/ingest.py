"""`ray job submit --working-dir . -- python jobs/ingest.py ARGUMENTS`: `voxray ingest ARGUMENTS` on a cluster."""

from voxray.cli import main

main("ingest")
