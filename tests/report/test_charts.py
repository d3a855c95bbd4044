"""Charts: well-formed, in the page's colours, with every text as text."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from voxray.report.charts import Axis, ChartSeries, histogram, lines, scatter, share_axis, strips

GAP = ChartSeries("a $x$ <b>", [0, 0.5, 1], [0.1, math.nan, 0.9], [0, math.nan, 0.5], [0.3, math.nan, 1.0])
OTHER = ChartSeries("_under & over", [0, 0.5, 1], [0.2, 0.4, 0.6], colour=1)


def texts(svg: str) -> list[str]:
    """The texts of a drawing, which must be one well-formed element."""
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter("text")]


def test_names_are_shown_as_they_are() -> None:
    shown = texts(lines([GAP, OTHER], share_axis("recall"), share_axis("precision")))
    assert {"a $x$ <b>", "recall", "precision", "1.0"} < set(shown)
    assert any(text.strip() == "_under & over" for text in shown)


def test_a_lone_series_has_no_legend() -> None:
    assert GAP.label not in texts(lines([GAP], share_axis("x"), share_axis("y")))


@pytest.mark.parametrize(
    "svg",
    [
        lines([GAP, OTHER], share_axis("x"), share_axis("y"), diagonal=True, dots=True),
        scatter([GAP, OTHER], Axis("ml", scale="log"), share_axis("Dice"), diagonal=True),
        histogram([0, 0.5, 1.0], [1, 20], [300, 4], missed=3),
        strips(
            ["liver", "spleen"],
            [[[0.5, 0.7], []]],
            [[ChartSeries("", [0], [0.6], [0.5], [0.7])] * 2],
            share_axis("Dice"),
            ["r"],
        ),
    ],
    ids=["lines", "scatter", "histogram", "strips"],
)
def test_nothing_in_it_leads_out_and_colours_are_the_pages(svg: str) -> None:
    ElementTree.fromstring(svg)
    assert "http" not in svg
    assert "xlink" not in svg
    assert "currentColor" in svg
    assert "var(--series-0)" in svg
    assert not re.search(r"#[ab]0[0b]", svg)
    named = set(re.findall(r'id="([^"]+)"', svg))
    assert named == set(re.findall(r'(?:url\(|href=")#([\w.-]+)', svg))


def test_the_same_numbers_give_the_same_drawing() -> None:
    assert lines([GAP], share_axis("x"), share_axis("y")) == lines([GAP], share_axis("x"), share_axis("y"))


def test_an_axis_without_ends_fits_what_is_drawn() -> None:
    shown = texts(scatter([ChartSeries("", [3000.0, 9000.0], [-40.0, -20.0])], Axis("x", scale="log"), Axis("y")))
    assert "5000" in shown
    assert not {"1", "0.0"} & set(shown)
