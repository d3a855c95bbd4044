"""`ray job submit --working-dir . -- python jobs/export.py ARGUMENTS`: `voxray export ARGUMENTS` on a cluster."""

import sys
from pathlib import Path

# The code that came with the job runs, here and in its workers, whatever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from voxray.__main__ import run

run("export")
