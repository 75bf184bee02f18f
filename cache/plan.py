"""The shard plan: which stretch of the input becomes which shard. Corpora make plans, the writer follows them.

A plan depends on the inputs and the shard size alone, so two encoders over one corpus give row-parallel caches.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

PieceKind = Literal["lines", "rows", "files", "tar", "shard"]


@dataclass(frozen=True)
class Piece:
    """One stretch of one source.

    Parameters
    ----------
    kind : str
        ``lines`` byte range of a text, JSONL or CSV file; ``rows`` row range of a parquet file; ``files`` a run of
        sorted files of one folder; ``tar`` one whole archive; ``shard`` one shard of a parent cache (completion,
        projection).
    source : str
        Name of the source relative to the input that was given; never an absolute path.
    rows : int or None
        Items in the piece; None for a tar, whose items are counted when it is audited.
    start, stop : int
        Bytes (``lines``) or rows (``rows``) of the half-open range; 0, 0 otherwise.
    first : int
        Number of the first line of the range (1-based), for keys made of line numbers.
    files : tuple of (str, int)
        For ``files``: path relative to the source, with its size in bytes.
    identity : str
        Digest of what decides the content: the bytes of a line range; names, sizes and both ends of files and tars.
    """

    kind: PieceKind
    source: str
    rows: int | None
    identity: str
    start: int = 0
    stop: int = 0
    first: int = 0
    files: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Fields that are not at their default, in declaration order."""
        record = asdict(self)
        defaults = {"start": 0, "stop": 0, "first": 0, "files": ()}
        return {k: v for k, v in record.items() if k not in defaults or v != defaults[k]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Piece:
        """The inverse of :meth:`to_json`; fields that this release does not know are ignored."""
        record = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        files = tuple((str(path), int(size)) for path, size in record.get("files", ()))
        return cls(**{**record, "files": files})


@dataclass(frozen=True)
class Unit:
    """The input of one shard: its number in the cache and its pieces, in order."""

    shard: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int | None:
        """Items in the unit, or None while a tar in it has not been counted."""
        counts = [piece.rows for piece in self.pieces]
        return None if None in counts else sum(n for n in counts if n is not None)

    @property
    def identity(self) -> str:
        """Digest over the pieces; a done marker records it and a resume compares it."""
        digest = hashlib.blake2b(digest_size=16)
        for piece in self.pieces:
            digest.update(f"{piece.kind}\0{piece.source}\0{piece.identity}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Plan:
    """One generation of the shard plan: the first run makes generation 0, each later run with new input appends one."""

    generation: int
    shard_size: int
    units: tuple[Unit, ...]
