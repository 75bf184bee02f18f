"""Environment variables that hold a length of time."""

from __future__ import annotations

import os

from .errors import RecipeError

LONGEST = 1e8  # seconds, three years; clocks and timers of libraries overflow not far beyond


def seconds_of(variable: str, default: float, *, zero: bool = False) -> float:
    """Seconds that an environment variable asks for, or the default where it is unset or empty.

    Raises
    ------
    RecipeError
        It is no number, or not above 0 (with ``zero``: below it), or above :data:`LONGEST`.
    """
    text = os.environ.get(variable, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= LONGEST or (seconds == 0.0 and not zero):
        raise RecipeError(f"{variable} is {text!r}, no number of seconds", todo=f"unset it, or give {default:.0f}")
    return seconds
