"""What is written beside a gallery about its index: the one file whose replacement commits it."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ...cache import fsio
from ...cache.errors import CacheError
from ...cache.faiss_index import FOLDER
from ...cache.reader import Cache
from ..shared import SharedView
from .choice import Kind

VERSION = 1
FORMAT = "cmcr-search-index"


@dataclass(frozen=True)
class IndexRecord:
    """An index that is there.

    Parameters
    ----------
    kind : str
    shards : tuple of (number, crc32, rows)
        Shards of the gallery that it covers, in order: the identity of its content.
    trained_rows : int
        Rows when it was last built whole.
    files : tuple of (name, bytes)
        The index: one file, parts of inverted lists, or a graph and one of the rows appended since.
    held_out : str
        File of the held-out queries.
    given : bool
        Whether those were given by the user, not drawn.
    effort : int
        efSearch of a graph, lists visited of inverted lists.
    trained_effort : int
        The same when it was last built whole.
    recall : float
        Recall@10 against exact search, measured on the held-out queries at that effort.
    target : float
        Recall that was aimed at.
    change : int
        Counts the commits.
    """

    kind: Kind
    shards: tuple[tuple[int, str, int], ...]
    trained_rows: int
    files: tuple[tuple[str, int], ...]
    held_out: str
    given: bool
    effort: int
    trained_effort: int
    recall: float
    target: float
    change: int

    @property
    def rows(self) -> int:
        """Rows covered."""
        return sum(rows for _, _, rows in self.shards)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        record = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return (json.dumps(record, sort_keys=True, indent=1) + "\n").encode()

    @staticmethod
    def from_json(record: dict[str, Any]) -> IndexRecord:
        """The record of a file; KeyError, TypeError or ValueError where it is not one."""
        if (record.pop("format"), record.pop("version")) != (FORMAT, VERSION):
            raise ValueError("another format or version")
        shards = tuple((int(a), str(b), int(c)) for a, b, c in record.pop("shards"))
        files = tuple((str(name), int(size)) for name, size in record.pop("files"))
        return IndexRecord(shards=shards, files=files, **record)


def shards_of(gallery: Cache) -> tuple[tuple[int, str, int], ...]:
    """The content of a gallery: number, checksum and rows of each shard in order."""
    return tuple((marker.shard, marker.crc32, marker.ok) for marker in gallery.shards)


class Place:
    """Where the index of one kind of a gallery lies: ``indexes`` beside it.

    The name depends on the space in which the rows are compared and on what made the gallery, not on its rows: it
    stays while the gallery grows. The record says which rows are covered.
    """

    def __init__(self, view: SharedView, kind: Kind) -> None:
        manifest = view.cache.manifest
        about = [kind, VERSION, view.space_id, view.head, view.dim, manifest.space_id, manifest.fingerprint]
        name = hashlib.blake2b(json.dumps(about).encode(), digest_size=8).hexdigest()
        self.folder = view.cache.path.parent / FOLDER
        self.stem = f"{view.cache.path.name}-search-{name}.{kind}"
        self.file = self.folder / f"{self.stem}.json"

    def read(self) -> IndexRecord | None:
        """The record whose files are all there in their sizes; None where there is none such."""
        try:
            record = IndexRecord.from_json(json.loads(self.file.read_bytes()))
            sound = all((self.folder / name).stat().st_size == size for name, size in record.files)
            return record if sound and (self.folder / record.held_out).is_file() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # missing, cut short or of another version: it is made anew

    def name(self, change: int, part: str) -> str:
        """File name of one part of one change."""
        return f"{self.stem}.g{change}.{part}"

    def prepare(self) -> None:
        """Make the folder, and clear what killed writers left."""
        with fsio.naming_folder(self.folder):
            fsio.make_folder(self.folder)
        fsio.sweep(self.folder)

    def write(self, name: str, write: Callable[[str], None]) -> tuple[str, int]:
        """Let ``write`` write a file by path, atomically; its name and size."""
        path = self.folder / name
        temporary = fsio.temporary_name(path)
        try:
            fsio.step("open", temporary)
            write(str(temporary))
            with temporary.open("rb") as handle:
                fsio.step("fsync", temporary)
                os.fsync(handle.fileno())
            fsio.step("replace", path)
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            raise CacheError(
                f"Cannot write the index of a gallery: {error}.",
                where=str(path),
                todo="free space or permissions there, or search exactly (--index exact), which writes nothing",
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return name, path.stat().st_size

    def commit(self, record: IndexRecord) -> None:
        """Replace the record, then remove the files that it no longer names."""
        fsio.write_atomic(self.file, record.to_bytes())
        named = {name for name, _ in record.files} | {record.held_out, self.file.name}
        for path in self.folder.glob(f"{glob.escape(self.stem)}.g*"):
            if path.name not in named:
                fsio.remove(path)
