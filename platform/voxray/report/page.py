"""From sections to one HTML file that needs nothing else: no address outside of it, and a policy that forbids any."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from voxray import __version__
from voxray.report.blocks import Cell, Section

_FOLDER = Path(__file__).parent
_ID = re.compile(r'(\bid="|url\(#|href="#)')


def to_html(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page; a section without blocks is left out."""
    script, style = (_text(name).strip() for name in ("page.js", "page.css"))
    numbers = count(1)

    def inline(svg: str) -> Markup:
        """The drawing with names that no other drawing of the page has."""
        # matplotlib, which made it, has escaped every text in it.
        return Markup(_ID.sub(rf"\1c{next(numbers)}-", svg))

    return _template().render(
        title=title,
        subtitle=subtitle,
        sections=[section for section in sections if section.blocks],
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        inline=inline,
        version=__version__,
    )


def short(value: Cell) -> str:
    """Text as it is, a number with three decimals, or fewer where it is large or whole; nan as a dash."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "-"
    if isinstance(value, int) or (value == round(value) and abs(value) >= 2):
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "base64": _base64}
    environment.tests["number"] = _is_number
    return environment.get_template("page.html.jinja")


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
