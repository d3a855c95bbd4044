"""What a report is made of: sections of plain typed blocks, which `page` turns into HTML and escapes."""

from __future__ import annotations

from typing import Literal, NamedTuple

Cell = str | float
"""Text, or a number, which is shown short and sorted by its full value; nan is a dash."""


class Text(NamedTuple):
    """A paragraph."""

    text: str
    kind: Literal["text"] = "text"


class Listing(NamedTuple):
    """A list of sentences."""

    items: tuple[str, ...]
    kind: Literal["listing"] = "listing"


class Facts(NamedTuple):
    """Names with what belongs to them."""

    rows: tuple[tuple[str, str], ...]
    kind: Literal["facts"] = "facts"


class Table(NamedTuple):
    """Rows under a header; the first cell of a row names it. A reader can sort it where `sortable`."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = False
    kind: Literal["table"] = "table"


class Chart(NamedTuple):
    """A drawing as SVG, which `charts` made, with what a reader who cannot see it needs."""

    svg: str
    title: str
    alt: str
    kind: Literal["chart"] = "chart"


class Picture(NamedTuple):
    """A picture of a scan as PNG."""

    png: bytes
    caption: str
    alt: str
    kind: Literal["picture"] = "picture"


class Figures(NamedTuple):
    """Charts or pictures side by side, as many as the width allows."""

    items: tuple[Chart | Picture, ...]
    wide: bool = False
    """Whether each needs much width."""
    kind: Literal["row"] = "row"


class Code(NamedTuple):
    """Text as it stands in a file."""

    text: str
    kind: Literal["code"] = "code"


class Heading(NamedTuple):
    """A heading within a section."""

    text: str
    kind: Literal["heading"] = "heading"


class Fold(NamedTuple):
    """Blocks that a reader opens."""

    summary: str
    blocks: tuple[Block, ...]
    kind: Literal["fold"] = "fold"


Block = Text | Listing | Facts | Table | Figures | Code | Heading | Fold


class Section(NamedTuple):
    """A part of the report under its heading; `name` is its place in the page's address."""

    name: str
    title: str
    blocks: tuple[Block, ...]
