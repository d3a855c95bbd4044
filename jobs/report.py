"""`ray job submit --working-dir . -- python jobs/report.py ARGUMENTS`: `voxray report ARGUMENTS` on a cluster."""

from voxray.cli import main

main("report")
