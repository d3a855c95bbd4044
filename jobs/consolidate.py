"""`ray job submit --working-dir . -- python jobs/consolidate.py ...`: `voxray consolidate ...` on a cluster."""

from voxray.cli import main

main("consolidate")
