"""`ray job submit --working-dir . -- python jobs/crossval.py ARGUMENTS`: `voxray crossval ARGUMENTS` on a cluster."""

from voxray.cli import main

main("crossval")
