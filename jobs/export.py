"""`ray job submit --working-dir . -- python jobs/export.py ARGUMENTS`: `voxray export ARGUMENTS` on a cluster."""

from voxray.cli import main

main("export")
