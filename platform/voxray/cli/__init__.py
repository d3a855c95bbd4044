"""The command line: `main` is the program, `app` its verbs."""

from voxray.cli.app import app, main

__all__ = ["app", "main"]
