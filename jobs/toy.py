"""`ray job submit --working-dir . -- python jobs/toy.py ARGUMENTS`: `voxray toy ARGUMENTS` on a cluster."""

from voxray.cli import main

main("toy")
