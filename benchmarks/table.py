"""What every benchmark shares: its options, its table, its JSON. Peer and voxray are measured in one run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One comparison; `ratio` is how many times better voxray is, whichever way the unit counts."""

    case: str
    peer: float
    voxray: float
    unit: str
    aim: float
    """The least ratio that is wanted; with ``aim_of = "voxray"`` the most that voxray's own number may be."""
    less_is_better: bool = False
    aim_of: Literal["ratio", "voxray"] = "ratio"

    @property
    def ratio(self) -> float:
        """Above 1 where voxray is better."""
        better, worse = (self.peer, self.voxray) if self.less_is_better else (self.voxray, self.peer)
        return better / worse if worse else float("inf")

    @property
    def met(self) -> bool:
        """Whether the aim was reached."""
        return self.ratio >= self.aim if self.aim_of == "ratio" else self.voxray <= self.aim


def options(about: str, *, folder: str = "", parts: Sequence[str] = ()) -> argparse.Namespace:
    """The command line: ``--quick``, ``--json FILE``, and ``--folder DIR`` where `folder` says what is kept there."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute or two; ratios are rougher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    if parts:
        parser.add_argument("--only", choices=parts, help="one part alone")
    if folder:
        parser.add_argument("--folder", type=Path, metavar="DIR", help=folder)
    return parser.parse_args()


def show(rows: Sequence[Row], *, title: str, json_file: Path | None = None) -> None:
    """Prints the rows, and writes them where asked to."""
    table = Table(title=title, title_justify="left")
    for name, justify in (
        ("case", "left"),
        ("peer", "right"),
        ("voxray", "right"),
        ("unit", "left"),
        ("ratio", "right"),
    ):
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    table.add_column("aim", justify="right")
    for row in rows:
        colour = "[green]" if row.met else "[red]"
        aim = f">= {row.aim:g}" if row.aim_of == "ratio" else f"voxray <= {row.aim:g}"
        cells = (
            row.case,
            _number(row.peer),
            _number(row.voxray),
            row.unit,
            f"{colour}{row.ratio:.2f}",
            aim,
        )
        table.add_row(*cells)
    Console(width=110).print(table)
    if json_file is not None:
        found = [{**asdict(row), "ratio": round(row.ratio, 3), "met": row.met} for row in rows]
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
