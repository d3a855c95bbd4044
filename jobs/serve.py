"""`ray job submit --working-dir . -- python jobs/serve.py ARGUMENTS`: `voxray serve ARGUMENTS` on a cluster."""

from voxray.cli import main

main("serve")
