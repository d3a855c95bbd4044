"""Winograd's F(4, 3): four neighbouring sums of three taps from 6 products, where the plain way takes 12.

On two axes together that is 36 for 144 (Lavin and Gray 2016, arXiv:1509.09308, section 4). The matrices are those of
the points 0, 1, -1, 2, -2 and infinity.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

TILE, SIDE, TAPS = 4, 6, 3
"""Answers of a tile on an axis, the neighbours that they are made of, and the taps of a kernel."""
POINTS = SIDE * SIDE

_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""G: three taps at the points."""
DATA = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
"""B^T: six neighbours at the points."""
ANSWER = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
"""A^T: four neighbouring answers from the points."""


def weights_at_points(weight: Float32[np.ndarray, "o i 3 3 3"]) -> Float32[np.ndarray, "36 3i o"]:
    """A convolution's weights at the points of x and y: for each, a matrix from z's taps and the channels in."""
    outputs, inputs = weight.shape[:2]
    by_tap = np.ascontiguousarray(weight.transpose(2, 3, 4, 1, 0), np.float32).reshape(TAPS * TAPS, -1)
    both = np.kron(np.array(_FILTER), np.array(_FILTER)).astype(np.float32)
    return (both @ by_tap).reshape(POINTS, TAPS * inputs, outputs)
