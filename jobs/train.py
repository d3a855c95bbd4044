"""`ray job submit --working-dir . -- python jobs/train.py ARGUMENTS`: `voxray train ARGUMENTS` on a cluster."""

from voxray.cli import main

main("train")
