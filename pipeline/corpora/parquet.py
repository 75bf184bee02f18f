"""Rows of a parquet file, read in blocks; needs pyarrow (the extra ``parquet``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...cache.errors import CorpusError, MissingExtraError
from ...cache.plan import PieceKind
from ...cache.remote import Place, local_copy
from .digest import new_digest
from .rows import Row, Update

_BLOCK = 1024


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("reading parquet needs pyarrow", todo="pip install 'cmcr[parquet]'") from error
    return pyarrow.parquet


@dataclass(frozen=True)
class ParquetTable:
    """A parquet file; columns that are neither text, numbers, lists of text nor encoded media are left out."""

    place: Place
    columns: tuple[str, ...]
    seed: bytes = b""
    kind: PieceKind = "rows"

    @classmethod
    def open(cls, place: Place) -> ParquetTable:
        """Open a file and read its schema."""
        parquet = _pyarrow()
        try:
            schema = parquet.read_schema(local_copy(place))
        except (OSError, ValueError) as error:
            raise CorpusError(f"the parquet file cannot be read: {error}", where=str(place)) from error
        return cls(place, tuple(field.name for field in schema if _readable(field.type)))

    def rows(
        self, start: int = 0, stop: int | None = None, line: int = 1, update: Update | None = None
    ) -> Iterator[Row]:
        """Rows ``[start, stop)``; only the row groups that hold them are read."""
        number = start
        try:
            with _pyarrow().ParquetFile(local_copy(self.place)) as file:
                end = file.metadata.num_rows if stop is None else min(stop, file.metadata.num_rows)
                groups, skip = _groups(file.metadata, start, end)
                for batch in file.iter_batches(_BLOCK, row_groups=groups, columns=list(self.columns)):
                    records = batch.slice(skip).to_pylist()
                    skip = max(0, skip - batch.num_rows)
                    for record in records[: end - number]:
                        raw = json.dumps(record, sort_keys=True, ensure_ascii=True, default=_plain).encode()
                        if update is not None:
                            update(raw)
                        yield Row(number, number + 1, number + 1, raw, record)
                        number += 1
        except (OSError, ValueError) as error:
            what = f"the parquet file is damaged at row {number}: {error}"
            raise CorpusError(what, where=str(self.place)) from error

    def digest(self, start: int, stop: int) -> str:
        """Digest of the values of the rows."""
        digest = new_digest()
        for _ in self.rows(start, stop, update=digest.update):
            pass
        return digest.hexdigest()


def _groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """Row groups that hold ``[start, stop)``, and how many rows of the first come before ``start``."""
    groups: list[int] = []
    skip = first = 0
    for group in range(metadata.num_row_groups):
        last = first + metadata.row_group(group).num_rows
        if last > start and first < stop:
            if not groups:
                skip = start - first
            groups.append(group)
        first = last
    return groups, max(0, skip)


def _readable(kind: Any) -> bool:
    """Text, numbers, times, lists of text, bytes, and the struct of bytes and path that common image tables use."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind):
        return bool(types.is_string(kind.value_type) or types.is_large_string(kind.value_type))
    if types.is_struct(kind):
        return {kind.field(i).name for i in range(kind.num_fields)} <= {"bytes", "path"}
    return not types.is_nested(kind)


def _plain(value: object) -> str:
    """Values that JSON lacks: bytes by their digest, times and decimals as text."""
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)
