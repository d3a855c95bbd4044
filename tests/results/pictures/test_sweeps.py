"""Pictures of what a sweep found."""

from __future__ import annotations

import io

import numpy as np
from matplotlib import image

from voxray.results.pictures import draw_importance, draw_slices


def shape_of(png: bytes) -> tuple[int, ...]:
    return tuple(np.asarray(image.imread(io.BytesIO(png))).shape[:2])


def test_a_bar_for_every_field() -> None:
    one = draw_importance({"merge.tile_iou": 1.0})
    three = draw_importance({"merge.tile_iou": 0.7, "merge.method": 0.2, "merge.score_floor": 0.1}, title="sweep")
    assert shape_of(three)[0] > shape_of(one)[0]
    assert draw_importance({}).startswith(b"\x89PNG")


def test_a_panel_for_every_field_whatever_its_values() -> None:
    rng = np.random.default_rng(0)
    trials: list[tuple[dict[str, bool | int | float | str], float]] = [
        ({"iou": float(iou), "rate": float(10 ** (-4 * iou)), "method": "ab"[number % 2]}, float(score))
        for number, (iou, score) in enumerate(rng.random((30, 2)))
    ]
    plain = draw_slices(trials, metric="mAP", best={})
    assert shape_of(plain) == (320, 3 * 420)
    marked = draw_slices(trials, metric="mAP", best={"iou": 0.5, "method": "a", "rate": 0.01}, log=["rate"])
    assert marked != plain
    assert shape_of(draw_slices([({"fill": True}, 0.1), ({"fill": False}, 0.2)], metric="mAP", best={})) == (320, 420)
    assert draw_slices([], metric="mAP", best={}).startswith(b"\x89PNG")
