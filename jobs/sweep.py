"""`ray job submit --working-dir . -- python jobs/sweep.py ARGUMENTS`: `voxray sweep ARGUMENTS` on a cluster."""

from voxray.cli import main

main("sweep")
