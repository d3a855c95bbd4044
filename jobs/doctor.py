"""`ray job submit --working-dir . -- python jobs/doctor.py ARGUMENTS`: `voxray doctor ARGUMENTS` on a cluster."""

from voxray.cli import main

main("doctor")
