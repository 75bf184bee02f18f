"""What a search is asked with: raw inputs or rows of a cache, as something to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache.errors import CacheError
from ..cache.reader import Cache
from .encoders.base import Modality


@dataclass(frozen=True)
class Query:
    """One query as a reader wants to see it: its name, and what there is to draw or play.

    ``label`` is the text itself, the name of the file or the key of the row.
    """

    label: str
    modality: str
    text: str | None = None
    path: Path | None = None
    caption: str | None = None
    key: str | None = None


def raw_queries(modality: Modality, values: Sequence[Any]) -> tuple[Query, ...]:
    """Queries for texts and paths as they were typed."""
    if modality == "text":
        return tuple(Query(label=value, modality=modality, text=value) for value in values)
    return tuple(
        Query(label=f"query {n + 1}", modality=modality)
        if isinstance(value, bytes)
        else Query(label=Path(value).name, modality=modality, path=Path(value))
        for n, value in enumerate(values)
    )


def query_rows(cache: Cache, key: str | Sequence[str] | None) -> npt.NDArray[np.int64]:
    """Rows of a query cache that a search asks with: all of them, or those of the keys, in the order given.

    Raises
    ------
    CacheError
        The cache has no rows, or none with such a key.
    """
    if not len(cache):
        raise CacheError(
            "The query cache has no rows.", where=str(cache.path), todo="encode at least one query into it"
        )
    if key is None:
        return np.arange(len(cache), dtype=np.int64)
    keys = [key] if isinstance(key, str) else list(key)
    rows = np.asarray(cache.index_of(keys), dtype=np.int64)  # (Q,)
    if (rows < 0).any():
        missing = keys[int(np.argmax(rows < 0))]
        examples = ", ".join(cache.keys(np.arange(min(3, len(cache)))))
        raise CacheError(
            f"The query cache has no row with the key {missing!r}.",
            where=str(cache.path),
            todo=f"its keys look like this: {examples}",
        )
    return rows


def cache_queries(cache: Cache, rows: npt.NDArray[np.int64]) -> tuple[Query, ...]:
    """Queries for rows of a cache."""
    modality = cache.manifest.modality
    found = zip(rows, cache.keys(rows), cache.captions(rows), strict=True)
    return tuple(
        Query(
            label=(caption or key) if modality == "text" else key,
            modality=modality,
            text=caption if modality == "text" else None,
            path=cache.source_path(int(row)) if modality != "text" else None,
            caption=caption,
            key=key,
        )
        for row, key, caption in found
    )
