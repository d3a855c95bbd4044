"""`ray job submit --working-dir . -- python jobs/info.py ARGUMENTS`: `voxray info ARGUMENTS` on a cluster."""

from voxray.cli import main

main("info")
