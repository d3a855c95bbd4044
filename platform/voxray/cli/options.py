"""Options and arguments that several verbs have, each with one meaning."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from voxray.core.errors import ConfigError
from voxray.distributed.watchdog import WAIT_NODES, seconds_of

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Overrides a field; repeatable.")
]
WorkersOption = Annotated[int, typer.Option(min=1, help="Ray workers; more than one, or a cluster, uses Ray.")]
GpusOption = Annotated[
    str,
    typer.Option(metavar="auto|0|1", help="GPUs of each worker; auto: one where the cluster has or can add GPUs."),
]


def _wait_for_nodes(text: str | None) -> str | None:
    """Tells whatever waits for nodes of a cluster how long it may."""
    if text is not None:
        try:
            seconds_of(text, where="--wait-nodes")
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None
        os.environ[WAIT_NODES] = text
    return text


WaitNodesOption = Annotated[
    str | None,
    typer.Option(
        "--wait-nodes",
        metavar="TIME",
        callback=_wait_for_nodes,
        help="How long to wait for nodes that a cluster lacks, such as 90s, 15m or 2h; default: 15m.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
FastOption = Annotated[bool, typer.Option("--fast", help="Fewer, larger windows, in half precision where that pays.")]
DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="A dataset's file, or its address.")]
RootOption = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The folder or address of the data, in place of the dataset file's own."),
]
AgainstOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Another's evaluation.json, compared case by case.")
]
SameAsTruthOption = Annotated[str | None, typer.Option(metavar="FILE", help="The same as TRUTH.")]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Write over files in the way that voxray did not write, or an earlier one."),
]
SeriesOption = Annotated[
    str | None,
    typer.Option("--series", metavar="UID", help="The CT series to read, of a folder with several; info lists them."),
]
SeriesManyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--series",
        metavar="UID",
        help="Answer this CT series, of folders with several, and leave out all else among the inputs; repeatable.",
    ),
]
SaveOption = Annotated[
    str,
    typer.Option(
        metavar="FORMS",
        help="Also write, with commas: preview; dicom-sr for DICOM scans; findings: csv-luna16, monai-json, "
        "markups; label maps: dicom-seg, rtstruct.",
    ),
]
SkipUnsupportedOption = Annotated[
    bool,
    typer.Option("--skip-unsupported", help="A form that a scan cannot have, as a NIfTI no SEG, is no failure."),
]
TrustPickleOption = Annotated[
    bool, typer.Option("--trust-pickle", help="Read pickles, which can run any code: only from those you trust.")
]
AcceptValuesOption = Annotated[
    bool,
    typer.Option("--accept-values", help="Take scans whose values can be no Hounsfield units, with a warning."),
]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a TOML or JSON file.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its s3:// address.")]
CheckpointMinutesOption = Annotated[
    float,
    typer.Option(
        "--checkpoint-minutes", min=0, help="Between checkpoints within an epoch; 0: only at the ends of epochs."
    ),
]
AcceptChangedDataOption = Annotated[
    bool,
    typer.Option(
        "--accept-changed-data", help="Go on though cases of the store have changed since; the run records it."
    ),
]
