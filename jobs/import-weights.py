"""`ray job submit --working-dir . -- python jobs/import-weights.py ...`: `voxray import-weights ...` on a cluster."""

from voxray.cli import main

main("import-weights")
