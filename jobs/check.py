"""`ray job submit --working-dir . -- python jobs/check.py ARGUMENTS`: `voxray check ARGUMENTS` on a cluster."""

from voxray.cli import main

main("check")
