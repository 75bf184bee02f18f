"""The error ledger: one line for each item that has no row, and for each remark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """One item that could not be read, or that was read with a remark: a line of the error ledger.

    ``stage`` is ``audit``, ``read``, ``decode`` or ``encode``. ``lost`` is False for a remark on an item that still has its row
    (a tar sample that lacks its caption, say) and for remarks on a whole source; only lost items count as failed.
    """

    key: str
    stage: str
    error: str
    message: str
    lost: bool = True
