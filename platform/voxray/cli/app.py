"""The command line: its verbs in one table, and what their errors become.

Exit codes: 0 all well; 1 a file, the machine or some cases failed; 2 something written is not allowed; 3 a fault of
voxray itself; 130 stopped by Ctrl-C, 143 by SIGTERM; 141 nobody reads its output any more, as after `| head`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from voxray.cli import answers, cluster, data, getting_started, models, serve, terminal, training
from voxray.cli.job_paths import refuse_relative
from voxray.core.addresses import at_home
from voxray.core.errors import TerminatedError
from voxray.distributed.metrics import set_verb
from voxray.distributed.worker_code import in_a_job

app = typer.Typer(
    name="voxray",
    help="Train, tune and serve 3D CT detection and segmentation on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

P = ParamSpec("P")

_state = {"debug": False}


def main(*verb: str) -> None:
    """The program; `verb` goes before the process's own arguments, as in ``main("train")``."""
    arguments = [*verb, *sys.argv[1:]]
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = ["--debug"] if "--debug" in own else []
    with terminal.readers_may_leave(), terminal.termination_heeded():
        app(debug + [text for text in own if text != "--debug"] + arguments[len(own) :])


def guarded(function: Callable[P, None], *, resume: str) -> Callable[P, None]:
    """The verb such that what it raises becomes a sentence and an exit code; `resume` is said after Ctrl-C."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            set_verb(function.__name__.replace("_", "-"))
            if in_a_job():
                refuse_relative(function, kwargs, folder=Path.cwd())
            function(*args, **{name: at_home(value) for name, value in kwargs.items()})  # type: ignore[arg-type]
        except typer.Exit:
            raise
        except KeyboardInterrupt as end:
            terminal.complain(f"stopped. {resume}".strip())
            raise typer.Exit(143 if isinstance(end, TerminatedError) else 130) from None
        except Exception as error:
            if _state["debug"] or (isinstance(error, BrokenPipeError) and terminal.reader_is_gone()):
                raise
            raise typer.Exit(terminal.explain(error)) from None

    return run


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    _state["debug"] = debug
    terminal.log_faults(debug=debug)


_AGAIN = "Run the same command again"
_VERBS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("info", data.info, ""),
    ("check", data.check, ""),
    ("toy", getting_started.toy, f"{_AGAIN} to go on with the next scan."),
    ("recipe", data.recipe, ""),
    ("ingest", data.ingest, f"{_AGAIN}: cases that are in the store are not done again."),
    ("train", training.train, f"{_AGAIN} to go on from the last checkpoint."),
    ("predict", answers.predict, f"{_AGAIN}: scans that are answered are not answered again."),
    ("export", models.export, ""),
    ("evaluate", answers.evaluate, f"{_AGAIN}: cases that are answered are not answered again."),
    ("sweep", training.sweep, f"{_AGAIN} to go on with the next trial."),
    ("report", answers.report, ""),
    ("crossval", training.crossval, f"{_AGAIN}: each fold goes on after its last finished epoch."),
    ("consolidate", models.consolidate, ""),
    ("serve", serve.serve, f"{_AGAIN}: jobs that were accepted are brought to their end."),
    ("token", serve.token, ""),
    ("import-weights", models.import_weights, ""),
    ("demo", getting_started.demo, f"{_AGAIN}: what is finished is not done again."),
    ("doctor", getting_started.doctor, ""),
    ("submit", cluster.submit, ""),
    ("status", cluster.status, ""),
)
"""Every verb in the order of help, with what is said after Ctrl-C."""
for _name, _function, _resume in _VERBS:
    # What `submit` does not know is its verb's.
    app.command(_name, context_settings={"ignore_unknown_options": _function is cluster.submit})(
        guarded(_function, resume=_resume)
    )
