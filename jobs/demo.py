"""`ray job submit --working-dir . -- python jobs/demo.py ARGUMENTS`: `voxray demo ARGUMENTS` on a cluster."""

from voxray.cli import main

main("demo")
