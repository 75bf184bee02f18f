"""The error ledger: one line for each item that has no row, and for each remark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .canonical import to_line
from .errors import CacheError


@dataclass(frozen=True)
class Failure:
    """One item that could not be read, or that was read with a remark: a line of the error ledger.

    ``stage`` is ``audit``, ``read``, ``decode``, ``encode`` or ``project``. ``lost`` is False for a remark on an item
    that still has its row (a tar sample that lacks its caption, say) and for remarks on a whole source; only lost items
    count as failed.
    """

    key: str
    stage: str
    error: str
    message: str
    lost: bool = True


def to_bytes(failures: Iterable[Failure]) -> bytes:
    """The ledger file: one JSON object a line, keys sorted, in the order of the input."""
    return b"".join(to_line(asdict(failure)) + b"\n" for failure in failures)


def read(path: Path) -> Iterator[Failure]:
    """The lines of a ledger file. Fields that this release does not know are ignored."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                texts = [str(record[name]) for name in ("key", "stage", "error", "message")]
                yield Failure(texts[0], texts[1], texts[2], texts[3], lost=bool(record.get("lost", True)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CacheError(
                    "This line of the error ledger cannot be read.",
                    where=f"{path}:{number}",
                    todo="run: cmcr cache verify, then cmcr cache verify --repair",
                ) from error
