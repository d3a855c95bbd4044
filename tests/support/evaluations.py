"""Evaluations to report on, and a strict reader of the page that comes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import numpy as np

from support.scored_scans import Scans, random_scans
from voxray.core.evaluation import Bootstrap, Evaluation
from voxray.metrics.record import detection_record, segmentation_record, with_metrics

NAMES = ("nodule", "cyst")
_VOID = {"meta", "img", "br", "hr", "link", "input"}


def detection_evaluation(
    scans: Scans | None = None, *, classes: tuple[str, ...] = NAMES, **fields: Any
) -> Evaluation:
    """Random findings on 12 scans of 6 patients, scored."""
    scans = scans or random_scans(np.random.default_rng(4), scans=12, found=10, truth=3, num_classes=len(classes))
    cases = {f"case {index:02}": f"patient {index // 2}" for index in range(len(scans[0]))}
    part = detection_record(cases, *scans, num_classes=len(classes), ious=(0.1, 0.5))
    objects = {
        name: {"objects": float(len(boxes)), "AP@0.10": 0.5} for name, boxes in zip(cases, scans[1], strict=True)
    }
    return _scored(fields | {"task": "detection", "classes": classes, "cases": objects, "detection": part})


def segmentation_evaluation(*, classes: tuple[str, ...] = NAMES, missing: bool = False, **fields: Any) -> Evaluation:
    """Random scores of structures in 5 scans; with `missing` the first case has none of the last class."""
    rng = np.random.default_rng(9)
    tables = [
        np.concatenate([rng.random((len(classes), 4)), 50 + 50 * rng.random((len(classes), 2))], 1) for _ in "12345"
    ]
    if missing:
        tables[0][-1] = [np.nan] * 4 + [3.0, 0.0]
    cases = {f"case {index}": f"patient {index}" for index in range(5)}
    dice = {
        name: {kind: value for kind, value in zip(classes, table[:, 0].tolist(), strict=True) if value == value}
        for name, table in zip(cases, tables, strict=True)
    }
    part = segmentation_record(cases, tables, classes)
    return _scored(fields | {"task": "segmentation", "classes": classes, "cases": dice, "segmentation": part})


def _scored(fields: dict[str, Any]) -> Evaluation:
    about = {"run": "r", "dataset": "d", "which": "val", "metrics": {}, "intervals": {}}
    bootstrap = Bootstrap(replicates=100, seed=3, confidence=0.95)
    return with_metrics(Evaluation(**about | {"bootstrap": bootstrap} | fields))


@dataclass
class Page:
    """What a page has."""

    ids: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    """Of links and of what is loaded."""
    headings: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    """The texts of the cells of every row of every table."""
    images: list[str] = field(default_factory=list)
    """What stands in for each picture and chart."""
    scripts: int = 0

    @property
    def text(self) -> str:
        """All text, as a reader sees it."""
        return " ".join(" ".join(self.texts).split())

    def row(self, name: str) -> list[str]:
        """The first row that begins with a name."""
        return next(row for row in self.rows if row[:1] == [name])


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page, self.open = Page(), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        assert not any(name.startswith("on") for name in given), given
        self.page.ids += [given["id"]] if "id" in given else []
        self.page.addresses += [given[name] for name in ("href", "src", "xlink:href", "action") if name in given]
        if tag == "img" or given.get("role") == "img":
            self.page.images.append(given["alt" if tag == "img" else "aria-label"])
        if tag == "tr":
            self.page.rows.append([])
        if tag in ("td", "th"):
            self.page.rows[-1].append("")
        if tag in ("h1", "h2", "h3"):
            self.page.headings.append("")
        self.page.scripts += tag == "script"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self.open):
            return
        self.page.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.page.rows[-1][-1] += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.page.headings[-1] += data


def read_page(html: str) -> Page:
    """The page, if every tag is closed in its place; addresses that lead out of it are refused."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    page = reader.page
    assert len(set(page.ids)) == len(page.ids)
    for address in page.addresses:
        assert address.startswith("data:image/png;base64,") or address.removeprefix("#") in page.ids, address
    assert all(page.images)
    assert page.scripts == 1
    return page
