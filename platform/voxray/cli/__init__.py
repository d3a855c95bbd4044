"""The command line: `main` is the program, `app` its verbs."""

from voxray.cli.program import app, main

__all__ = ["app", "main"]
