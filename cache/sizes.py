"""Sizes as people write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)I?B?\s*$", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str | int) -> int:
    """Bytes meant by ``"1GB"``, ``"512 MB"`` or a plain number; decimal units.

    Raises
    ------
    ValueError
        It is no size.
    """
    if isinstance(text, int):
        return text
    found = _SIZE.match(text)
    if found is None:
        raise ValueError(f"{text!r} is not a size; write for example 512MB or 2GB")
    return int(float(found[1]) * _UNITS[found[2].upper()])
