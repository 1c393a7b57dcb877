"""Wilson's score interval of a share."""

from typing import NamedTuple

import numpy as np

Z = 1.96  # 95 % of a normal distribution lie within so many standard deviations


class Bounds(NamedTuple):
    low: float | np.ndarray
    high: float | np.ndarray


def wilson(p: float | np.ndarray, n: float | np.ndarray) -> Bounds:
    """The bounds within which a share p of n lies with 95 % confidence (Wilson 1927), also where p
    is 0 or 1; numbers or arrays of one shape:

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    middle = p + Z**2 / (2 * n)
    reach = Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    whole = 1 + Z**2 / n
    return Bounds((middle - reach) / whole, (middle + reach) / whole)
