"""`ray job submit --working-dir . -- python jobs/predict.py ARGUMENTS`: `voxray predict ARGUMENTS` on a cluster."""

from voxray.cli import main

main("predict")
