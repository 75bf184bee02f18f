"""The done marker: the sidecar whose replacement commits a shard. Values, their checks, and their listing."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import canonical
from .errors import CacheError

FORMAT = "cmcr-shard"
VERSION = 1
NEXT = "run cmcr cache verify on the cache, then the same with --repair"
WAY_NAME = re.compile(r"^\.\d{5,}\.json\.next$")
_MARKER_NAME = re.compile(r"^(\d{5,})\.json$")
DATA_NAME = re.compile(r"^(\d{5,})\.g(\d+)\.h5$")
_CRC32 = re.compile(r"[0-9a-f]{8}")
LEDGER_NAME = re.compile(r"^(\d{5,})(?:\.g(\d+))?\.jsonl$")


def shard_name(shard: int) -> str:
    """Five digits, or more where needed."""
    return f"{shard:05d}"


def marker_name(shard: int) -> str:
    """Name of the done marker."""
    return f"{shard_name(shard)}.json"


def is_marker(name: str) -> bool:
    """Whether a file name is that of a done marker."""
    return _MARKER_NAME.match(name) is not None


def way_name(shard: int) -> str:
    """Name under which a marker stands on its way to replacing another; the same for all writers of the shard."""
    return f".{marker_name(shard)}.next"


def data_name(shard: int, generation: int) -> str:
    """Name of a shard file: every rewrite is a new file."""
    return f"{shard_name(shard)}.g{generation}.h5"


def ledger_name(shard: int, generation: int) -> str:
    """Name of the error ledger of a shard file."""
    return f"{shard_name(shard)}.jsonl" if generation == 0 else f"{shard_name(shard)}.g{generation}.jsonl"


@dataclass(frozen=True)
class DoneMarker:
    """What a done marker says; the fields are specified in docs/format.md.

    ``state`` is ``dropped`` where a repair or an overwrite took the shard back: no reader counts it, and the next write
    of the shard is generation ``generation + 1``.
    """

    shard: int
    generation: int
    plan_generation: int
    file: str
    bytes: int
    crc32: str
    expected: int
    ok: int
    failed: int
    dtype: Literal["float16", "float32"]
    dim: int
    embedding_offset: int | None
    key_offset: int | None
    key_length: int
    columns: tuple[str, ...]
    ledger: str | None
    ledger_crc32: str | None
    identity: str
    fingerprint: str
    state: Literal["done", "dropped"] = "done"

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Type of an element of /embedding, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector."""
        return self.dim * self.stored_dtype.itemsize


def marker_bytes(marker: DoneMarker) -> bytes:
    """The marker file."""
    return canonical.to_pretty({"format": FORMAT, "version": VERSION, **asdict(marker)})


def read_marker(path: Path) -> DoneMarker:
    """Read and check one marker.

    Raises
    ------
    CacheError
        Not JSON, an unknown version, a missing or impossible field, a file name other than the shard's own.
    """
    record = canonical.read_object(path, FORMAT, VERSION, NEXT)
    texts = {
        name: canonical.field(record, name, str, path, NEXT) for name in ("file", "crc32", "identity", "fingerprint")
    }
    names = ("shard", "generation", "plan_generation", "bytes", "expected", "ok", "failed", "dim", "key_length")
    counts = {name: canonical.field(record, name, int, path, NEXT) for name in names}
    optional: dict[str, Any] = {}
    for name, kind in (("embedding_offset", int), ("key_offset", int), ("ledger", str), ("ledger_crc32", str)):
        optional[name] = None if record.get(name) is None else canonical.field(record, name, kind, path, NEXT)
    columns = canonical.field(record, "columns", list, path, NEXT)
    marker = DoneMarker(
        **texts,
        **counts,
        **optional,
        columns=tuple(str(name) for name in columns),
        dtype=record.get("dtype", ""),
        state=record.get("state", "done"),
    )
    if problem := _contradiction(marker, path):
        raise CacheError(f"The done marker is not valid: {problem}.", where=str(path), todo=NEXT)
    return marker


def _contradiction(marker: DoneMarker, path: Path) -> str | None:
    """What in a marker cannot be, or None."""
    m = marker
    if marker_name(m.shard) != path.name:
        return f"it says shard {m.shard}"
    if m.state not in ("done", "dropped"):
        return f"state is {m.state!r}"
    if m.file != data_name(m.shard, m.generation):  # also keeps any path out of it
        return f"its data file is {m.file!r}, not {data_name(m.shard, m.generation)!r}"
    if m.ledger is not None and m.ledger != ledger_name(m.shard, m.generation):
        return f"its ledger is {m.ledger!r}, not {ledger_name(m.shard, m.generation)!r}"
    if not all(_CRC32.fullmatch(crc) for crc in (m.crc32, m.ledger_crc32 or "00000000")):
        return "a CRC-32 is 8 hexadecimal digits"  # a mirrored file is named by it
    if m.dtype not in ("float16", "float32"):
        return f"dtype is {m.dtype!r}"
    if m.ok + m.failed != m.expected:
        return f"{m.ok} rows and {m.failed} failures are not the {m.expected} items expected"
    if m.dim < 1 or m.key_length < 1:
        return "dim and key_length are at least 1"
    if m.ok == 0:
        return None if m.embedding_offset is None and m.key_offset is None else "an empty shard has no offsets"
    if m.embedding_offset is None or m.key_offset is None:
        return "offsets are missing"
    if m.embedding_offset % m.stored_dtype.itemsize:
        return f"embedding_offset {m.embedding_offset} is not aligned"
    if m.embedding_offset + m.ok * m.row_bytes > m.bytes or m.key_offset + m.ok * m.key_length > m.bytes:
        return f"{m.ok} rows do not fit in {m.bytes} bytes"
    return None


def find_marker(path: Path, shard: int) -> DoneMarker | None:
    """The marker of a shard as it is on disk now, a dropped one too; None if there is none or it is damaged."""
    try:
        return read_marker(path / "shards" / marker_name(shard))
    except CacheError:
        return None


def list_markers(folder: Path) -> dict[int, Path]:
    """Shard number to marker path, in the order of the numbers; one listing of the folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        found = {int(match[1]): folder / match[0] for entry in entries if (match := _MARKER_NAME.match(entry.name))}
    return {shard: found[shard] for shard in sorted(found)}
