"""``python -m voxray`` is ``voxray``."""

from voxray.cli import main

main()
