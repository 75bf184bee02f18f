"""The temperature of a completion, chosen without labels: the one at which the median query averages a fixed number.

docs/completion.md says why it is a number of neighbours and not cycle consistency.
"""

from __future__ import annotations

import math

import numpy as np

from .probe import Sharpness

TARGET = 16.0  # effective neighbours of the median query
LOWEST, HIGHEST = 1e-3, 1.0
_STEPS = 40


def target_neighbours(rows: int) -> float:
    """Effective neighbours aimed at in a bank of so many rows: 16, or the square root of fewer than 256 rows."""
    return min(TARGET, math.sqrt(rows))


def choose_tau(sharpness: Sharpness) -> float:
    """τ at which the probe's median effective number of neighbours is :func:`target_neighbours`.

    That number grows with τ, so bisection finds it; three significant digits, so that rounding does not move it.
    """
    wanted = target_neighbours(sharpness.rows)
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if float(np.median(sharpness.neighbours(math.exp(middle)))) < wanted:
            low = middle
        else:
            high = middle
        if high - low < 1e-4:
            break
    return float(f"{math.exp(high):.2e}")
