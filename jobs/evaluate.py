"""`ray job submit --working-dir . -- python jobs/evaluate.py ARGUMENTS`: `voxray evaluate ARGUMENTS` on a cluster."""

from voxray.cli import main

main("evaluate")
