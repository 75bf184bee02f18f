"""Committing a shard: files are created and never replaced, a marker is exchanged only for the one it was made after.

Leases expire while a paused process still believes in its own. Such a process may go on at any instruction, long after
others wrote the shard, retried it and wrote it again. Neither rename nor unlink compares before it acts, so a marker is
moved in two renames through a place that all writers of the shard share: whoever puts a marker there throws out what a
late one had put there, and the late one's second rename finds nothing or carries a valid newer marker. The rules are
specified in docs/format.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from . import fsio
from . import marker as markers
from .errors import CacheError
from .marker import DoneMarker
from .shard import check_file

TRIES = 16


def commit(path: Path, before: DoneMarker | None, done: DoneMarker, image: bytes, notes: bytes) -> DoneMarker:
    """Write ledger and shard file under the first free generation from that of ``done`` on, then the marker.

    Parameters
    ----------
    path : Path
        The cache.
    before : DoneMarker or None
        The marker that the shard had when this write was decided upon.
    done : DoneMarker
        The marker to be, with the lowest generation that it may have.
    image, notes : bytes
        Content of shard file and ledger.

    Returns
    -------
    DoneMarker
        The marker that is in place: another worker's where that one was faster.
    """
    done = _place_files(path, done, image, notes)
    found = put_marker(path, before, done)
    if found.file == done.file:
        old = before
    else:  # overtaken: nobody names what was written here
        old = done if done.generation < found.generation else None
    if old is not None and old.file != found.file:
        remove_generation(path, old)
    return found


def _place_files(path: Path, done: DoneMarker, image: bytes, notes: bytes) -> DoneMarker:
    """Create ledger and shard file; where another content has the name, the next generation is taken."""
    while True:
        ledger = path / "errors" / markers.ledger_name(done.shard, done.generation)
        free = fsio.create_atomic(ledger, notes) if notes else not ledger.exists()
        if free and fsio.create_atomic(path / "shards" / done.file, image, partial(check_file, marker=done)):
            return done
        done = with_generation(done, done.generation + 1)


def with_generation(done: DoneMarker, generation: int) -> DoneMarker:
    """The same content as another generation of the shard's files."""
    ledger = None if done.ledger is None else markers.ledger_name(done.shard, generation)
    return replace(done, generation=generation, file=markers.data_name(done.shard, generation), ledger=ledger)


def put_marker(path: Path, before: DoneMarker | None, wanted: DoneMarker, *, durable: bool = True) -> DoneMarker:
    """Exchange the marker ``before`` for ``wanted``; where another one is there by now, that one stays.

    Returns
    -------
    DoneMarker
        The marker that is in place.

    Raises
    ------
    CacheError
        The marker is never found there, as on a file system that does not rename atomically.
    """
    file, content = path / "shards" / markers.marker_name(wanted.shard), markers.marker_bytes(wanted)
    way = path / "shards" / markers.way_name(wanted.shard)
    for _ in range(TRIES):
        if before is None and not file.exists():
            if fsio.create_atomic(file, content, durable=durable):
                return wanted
            if (now := markers.find_marker(path, wanted.shard)) is not None:
                return now
        else:
            fsio.write_atomic(way, content, durable=False)
            now = markers.find_marker(path, wanted.shard)
            if now is not None and now != before and (before is None or now.generation >= before.generation):
                fsio.remove(way)
                return now
            fsio.move(way, file, durable=durable)
        now = markers.find_marker(path, wanted.shard)
        if now is not None and now != before and (now == wanted or now.generation >= wanted.generation):
            return now
        before = now  # unchanged: what was on its way was swept; lower: a late worker's came through, ours goes again
    raise CacheError(
        f"The done marker of shard {markers.shard_name(wanted.shard)} cannot be put in place.",
        where=str(file),
        todo="see whether the file system renames files atomically, then run the same command again",
    )


def drop(path: Path, done: DoneMarker) -> bool:
    """Take a shard back: its marker stays as ``dropped``, so that the next write is a new generation.

    False where the shard was written again in the meantime; then it stands.
    """
    wanted = replace(done, state="dropped")
    return put_marker(path, done, wanted, durable=False) == wanted


def remove_generation(path: Path, old: DoneMarker) -> None:
    """Remove the data file and the ledger of one generation of a shard."""
    fsio.remove(path / "shards" / old.file)
    fsio.remove(path / "errors" / markers.ledger_name(old.shard, old.generation))
