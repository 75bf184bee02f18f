"""Official lists of the benchmarks, and a user's media folder beside them."""

from __future__ import annotations

from .entries import Entry, Prepared

__all__ = ["Entry", "Prepared"]
