"""`ray job submit --working-dir . -- python jobs/recipe.py ARGUMENTS`: `voxray recipe ARGUMENTS` on a cluster."""

from voxray.cli import main

main("recipe")
