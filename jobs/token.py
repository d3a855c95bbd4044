"""`ray job submit --working-dir . -- python jobs/token.py ARGUMENTS`: `voxray token ARGUMENTS` on a cluster."""

from voxray.cli import main

main("token")
