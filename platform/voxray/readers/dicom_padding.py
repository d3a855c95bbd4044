"""What a file names as padding, read as air.

Pixel Padding Value (with Pixel Padding Range Limit, a range) marks pixels outside of the image, such as those around
a scanner's circular view (PS3.3 C.7.5.1.1.2). It should occur nowhere else, but files are written where it does, so:

* padding of a value that no tissue has (below -1024 HU, or above 3071 HU) is air wherever it lies;
* padding of -1024 to -1000 HU is air as it stands, and left so;
* padding of any other value is air where it reaches, value by value, a corner of its slice; within the image it is
  taken for tissue and left as it is.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Integer

from voxray.readers.stored import AIR_HU

_TOP_HU = 3071
"""The most that 12 bits hold after an intercept of -1024."""
_AIR_UP_TO_HU = -1000

_Mask = Bool[np.ndarray, "y x"]


def split_padding(
    values: Integer[np.ndarray, "y x"], is_padding: _Mask, *, slope: float, intercept: float
) -> tuple[_Mask, int]:
    """Which pixels become air, and how many more have a padding value but lie within the image."""
    hu = values[is_padding] * slope + intercept
    certain, air = (np.zeros_like(is_padding) for _ in range(2))
    certain[is_padding] = (hu < AIR_HU) | (hu > _TOP_HU)
    air[is_padding] = (hu >= AIR_HU) & (hu <= _AIR_UP_TO_HU)
    doubtful = is_padding & ~certain & ~air
    if not doubtful.any():
        return certain, 0
    outside = doubtful & _reaching_corner(is_padding)
    return certain | outside, int(np.count_nonzero(doubtful & ~outside))


def _reaching_corner(is_padding: _Mask) -> _Mask:
    regions, _ = scipy.ndimage.label(is_padding)
    corners = {int(regions[y, x]) for y in (0, -1) for x in (0, -1)} - {0}
    return np.asarray(np.isin(regions, list(corners)))
