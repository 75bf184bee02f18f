"""Folders, globs and single media files: one item a file, keyed by its path relative to the root, without extension."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...cache.keys import stem
from ...cache.ledger import Failure
from ...cache.plan import Piece
from ...cache.remote import Place, RemotePath
from ..encoders.base import Item
from .base import CorpusSettings, Survey, Task
from .digest import FilesDigest, ends_of, read_ends
from .keys import path_text, text_path
from .lines import stale
from .names import CAPTION, RECORD

_KEY_BLOCK = 4096
_REQUESTS = 16


@dataclass(frozen=True)
class FilesSource:
    """A run of media files under one root, in the order of their POSIX paths.

    Parameters
    ----------
    name : str
        Base name of the root; it stands in plans, never in keys.
    place : Path
        The root.
    files : tuple of str
        Paths relative to the root, sorted.
    companions : frozenset of str
        Caption and record files that lie beside media files, relative to the root.
    """

    name: str
    place: Place
    files: tuple[str, ...]
    companions: frozenset[str] = frozenset()
    settings: CorpusSettings = field(default_factory=CorpusSettings)
    prefix: None = None

    @property
    def root(self) -> Place:
        """The folder that paths are relative to."""
        return self.place

    @cached_property
    def known_paths(self) -> frozenset[str]:
        """The paths, for looking one up."""
        return frozenset(self.files)

    def explicit_keys(self) -> Iterator[tuple[str, str]]:
        """Key and full path of every file."""
        return ((key, str(self.place / path)) for path in self.files for key in self.keys_of(path))

    def keys_of(self, path: str) -> list[str]:
        """Keys of the items of a file."""
        return [stem(path)]

    def holds(self, key: str) -> bool:
        """Folders have no prefix of their own."""
        return False

    def survey(self, task: Task) -> Survey:
        """Keep earlier files whose identity agrees; plan the files that are new."""
        for path in self.files:
            for key in self.keys_of(path):
                task.keys.add(self, key)
        known, changed, vanished = self._compare(task.earlier)
        planned = {path for piece in task.earlier for path, _ in piece.files}
        stems = {stem(path) for path in planned}
        fresh: list[str] = []
        unseen = [path for path in self.files if path not in planned]
        for block in (unseen[i : i + _KEY_BLOCK] for i in range(0, len(unseen), _KEY_BLOCK)):
            for path, done in zip(block, task.known_keys([self.keys_of(path)[0] for path in block]), strict=True):
                if stem(path) in stems:
                    changed.append(f"{path} (another file had the key {stem(path)!r} before)")
                elif done:
                    known += 1
                else:
                    fresh.append(path)
        self._pack(fresh, task)
        return Survey(known, tuple(changed), tuple(vanished))

    def _pack(self, fresh: Sequence[str], task: Task) -> None:
        used = 0
        while used < len(fresh):
            run, rows = self._run(fresh[used : used + task.packer.room], task.packer.room)
            sizes, identity = self._identify(run)
            task.packer.add(Piece("files", self.name, rows, identity, files=tuple(zip(run, sizes, strict=True))))
            used += len(run)

    def _run(self, paths: Sequence[str], room: int) -> tuple[Sequence[str], int]:
        """The first of the files whose items fit into ``room``, at least one, and how many items these are."""
        rows = 0
        for taken, path in enumerate(paths):
            count = len(self.keys_of(path))
            if taken and rows + count > room:
                return paths[:taken], rows
            rows += count
        return paths, rows

    def _identify(self, paths: Iterable[str]) -> tuple[list[int], str]:
        digest, sizes = FilesDigest(), []
        for path in paths:
            size, ends = _look(self.place, path)
            digest.add(path, size, ends)
            sizes.append(size)
        return sizes, digest.hexdigest()

    def _compare(self, earlier: Sequence[Piece]) -> tuple[int, list[str], list[str]]:
        """Files still as planned, changed ones and vanished ones."""
        known, changed, vanished = 0, list[str](), list[str]()
        present = self.known_paths
        for piece in earlier:
            gone = [path for path, _ in piece.files if path not in present]
            sizes, identity = self._identify(path for path, _ in piece.files)
            other = [
                path for (path, size), now in zip(piece.files, sizes, strict=True) if path in present and now != size
            ]
            vanished += gone
            changed += other
            if not gone and not other and identity != piece.identity:
                changed.append(
                    f"{piece.files[0][0]} … {piece.files[-1][0]} (at least one of {len(piece.files)}, same size)"
                )
                continue
            known += len(piece.files) - len(gone) - len(other)
        return known, changed, vanished

    def read(self, piece: Piece) -> Iterator[Item | Failure]:
        """Every file of the piece, as bytes; one that cannot be read, or is too large, is a failure."""
        digest = FilesDigest()
        for path, size, found in self._loaded(piece):
            if isinstance(found, Failure):
                now, ends = _look(self.place, path)
                digest.add(path, now, ends)
                for key in self.keys_of(path):
                    yield Failure(key, found.stage, found.error, found.message)
                continue
            digest.add(path, len(found), ends_of(found))
            if len(found) != size:
                raise stale(self.place, f"{path} had {size} bytes and has {len(found)}")
            yield from self.items_of(path, found)
        if digest.hexdigest() != piece.identity:
            names = f"{piece.files[0][0]} … {piece.files[-1][0]}"
            raise stale(self.place, f"at least one of {len(piece.files)} files ({names}) is other or gone")

    def _loaded(self, piece: Piece) -> Iterator[tuple[str, int, bytes | Failure]]:
        """Path, planned size and content of each file; from a server several at once, as each answer takes its time."""
        limit = self.settings.max_item_bytes
        if not isinstance(self.place, RemotePath):
            yield from ((path, size, load_file(self.place, path, limit)) for path, size in piece.files)
            return
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for block in (piece.files[i : i + _REQUESTS] for i in range(0, len(piece.files), _REQUESTS)):
                contents = pool.map(lambda file: load_file(self.place, file[0], limit), block)
                yield from ((path, size, found) for (path, size), found in zip(block, contents, strict=True))

    def items_of(self, path: str, data: bytes) -> Iterator[Item | Failure]:
        """The item of a media file, with what lies beside it."""
        caption, meta = self._beside(path)
        yield Item(stem(path), data, name=path, caption=caption, source=path, meta=meta)

    def _beside(self, path: str) -> tuple[str | None, dict[str, Any] | None]:
        """Caption and record of the companions of a media file."""
        texts = {
            ext: (self.place / f"{stem(path)}.{ext}").read_bytes()
            for ext in sorted(CAPTION | RECORD)
            if f"{stem(path)}.{ext}" in self.companions
        }
        return caption_and_record(texts)


def caption_and_record(texts: dict[str, bytes]) -> tuple[str | None, dict[str, Any] | None]:
    """Caption and record out of companion files by extension; what cannot be read as text is left out."""
    caption: str | None = None
    meta: dict[str, Any] | None = None
    for ext, data in texts.items():
        text = data.decode("utf-8-sig", "replace").replace("\0", "")
        if ext in CAPTION:
            caption = caption or "\n".join(line for line in text.splitlines() if line.strip()) or None
            continue
        try:
            record = json.loads(text, parse_constant=lambda _: None)
        except ValueError:
            continue
        meta = record if isinstance(record, dict) else {"value": record}
    if caption is None and meta is not None:
        found = next((meta[name] for name in ("caption", "text") if isinstance(meta.get(name), str)), None)
        caption = found or None
    return caption, meta


def load_file(root: Place, path: str, limit: int) -> bytes | Failure:
    """Content of a regular file, or a failure without a key."""
    place = _resolve(root, path)
    try:
        info = place.stat()
        if not stat.S_ISREG(info.st_mode):
            return Failure("", "read", "NotAFile", f"{path} is not a regular file")
        if info.st_size > limit:
            return Failure("", "read", "TooLarge", f"{path} has {info.st_size} bytes, more than {limit}")
        if isinstance(place, RemotePath):
            return place.read_bytes()
        with open(place, "rb", buffering=0) as handle:
            return handle.readall()
    except OSError as error:
        return Failure("", "read", type(error).__name__, f"{path} cannot be read: {error.strerror}")


def _look(root: Place, path: str) -> tuple[int, bytes | None]:
    """Size and both ends; (0, None) or (size, None) if they cannot be read."""
    place = _resolve(root, path)
    size = 0
    try:
        info = place.stat()
        size = info.st_size
        return (size, read_ends(place, size)) if stat.S_ISREG(info.st_mode) else (size, None)
    except OSError:
        return size, None


def _resolve(root: Place, path: str) -> Place:
    if isinstance(root, RemotePath):
        return root / path
    place = root / path
    return root / text_path(path) if "\\x" in path and not os.path.lexists(place) else place


@dataclass
class Listing:
    """The files of a folder: sorted relative paths, and how many hidden entries and special files were left out."""

    files: list[str]
    hidden: int = 0
    special: int = 0


def list_remote(root: RemotePath) -> Listing:
    """All files under a remote folder, by the rules of :func:`list_folder`."""
    listing = Listing([])
    for path in root.walk():
        if any(part.startswith(".") for part in path.split("/")):
            listing.hidden += 1
        else:
            listing.files.append(path_text(path))
    listing.files.sort()
    return listing


def list_folder(root: Path) -> Listing:
    """All regular files under a folder, links followed but no folder twice; links that lead nowhere count as files."""
    listing = Listing([])
    seen: set[tuple[int, int]] = set()
    pending = [(root, "")]
    while pending:
        folder, prefix = pending.pop()
        info = folder.stat()
        if (info.st_dev, info.st_ino) in seen:
            continue
        seen.add((info.st_dev, info.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    listing.hidden += 1
                elif entry.is_dir():
                    pending.append((folder / entry.name, f"{prefix}{entry.name}/"))
                elif entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists()):
                    listing.files.append(path_text(prefix + entry.name))
                else:
                    listing.special += 1
    listing.files.sort()
    return listing
