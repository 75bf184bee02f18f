"""Messages for ledgers and reports: one line, and the same on every run."""

from __future__ import annotations

import re

LIMIT = 500
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, without memory addresses, which differ from run to run."""
    plain = error.strerror if isinstance(error, OSError) else None  # str() of an OSError holds an absolute path
    text = getattr(error, "what", None) or plain or str(error) or type(error).__name__
    return " ".join(_ADDRESS.sub("", str(text)).split())[:LIMIT]
