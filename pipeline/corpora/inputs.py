"""From what stands behind ``--input`` to sources: files, folders, globs, brace ranges."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from ...cache.errors import CorpusError
from ...cache.keys import stem
from ...cache.remote import Place, RemotePath
from ...cache.urls import as_url, local_path
from ..encoders.base import MODALITIES, Modality
from .base import CorpusSettings, Source
from .caption_files import CaptionFilesSource
from .columns import NoColumnError
from .corpus import FileCorpus
from .folders import FilesSource, Listing, list_folder, list_remote
from .keys import path_text
from .lines import LinesSource
from .names import ARCHIVES, CAPTION, COMPRESSED, LINES, MEDIA, RECORD, TABLES, extension, looked_for
from .tables import TableSource
from .tars import TarSource


@dataclass
class Found:
    """Files of one root, and how they were given: by name, or by a folder or glob."""

    root: Place
    files: list[str] = field(default_factory=list)
    named: bool = False
    hidden: int = 0
    special: int = 0


def open_corpus(
    inputs: Sequence[str | Path], modality: Modality, settings: CorpusSettings = CorpusSettings()
) -> FileCorpus:
    """Open inputs as a corpus of one modality.

    Parameters
    ----------
    inputs : sequence of str or Path
        Text files, tables, tars, media files, folders, globs (``images/**/*.jpg``), brace ranges (``s-{0..3}.tar``),
        or URLs of these (``s3://bucket/captions.txt``, ``https://host/s-{0..3}.tar``).
    modality : str
        ``text``, ``image``, ``audio`` or ``pointcloud``.
    settings : CorpusSettings
        Columns, key rule of tars, pattern.

    Raises
    ------
    CorpusError
        If an input is missing, compressed, or has nothing of the modality; says what was looked for.
    """
    if modality not in MODALITIES:
        raise CorpusError(f"unknown modality {modality!r}", todo=f"one of {', '.join(MODALITIES)}")
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if not inputs:
        raise CorpusError("no input was given", todo=f"give {looked_for(modality)}")
    builder = _Builder(modality, settings)
    for found in _group(f for given in inputs for f in find(str(given))):
        builder.take(found)
    if not builder.sources:
        seen = "; ".join(builder.remarks)
        raise CorpusError(
            f"no {modality} input found" + (f" ({seen})" if seen else ""),
            where=", ".join(str(given) for given in inputs),
            todo=f"looked for {looked_for(modality)}",
        )
    return FileCorpus(modality, tuple(builder.sources), tuple(builder.remarks))


def find(given: str) -> list[Found]:
    """What one input stands for."""
    refuse_pipes(given)
    if "{" not in given and (url := as_url(local_path(given))) is not None:
        return [_remote(url, given)]
    place = Path(local_path(given)).expanduser()
    if place.is_dir():
        return [_folder(place)]
    if place.exists():
        return [_single(place)]
    if "{" in given:
        from braceexpand import braceexpand

        try:
            parts = list(braceexpand(given))
        except ValueError as error:
            raise CorpusError(f"the braces do not match: {error}", where=given) from error
        if parts != [given]:
            return [found for part in parts for found in find(part)]
    if glob.has_magic(given):
        return [_glob(str(place))]
    raise CorpusError(
        "the input does not exist", where=given, todo="check the path; globs and brace ranges need quotes"
    )


def refuse_pipes(given: str) -> None:
    """Raise for pipes, which a webdataset may name: no command is ever run."""
    if given.startswith(("pipe:", "|")):
        raise CorpusError("pipes are never run", where=given, todo="write the output of the command to a file first")


def _remote(url: str, given: str) -> Found:
    """What a URL stands for: a file, a folder that its server lists, or a pattern."""
    place = RemotePath.parse(url)
    magic = "*[" if place.is_http else "*[?"  # a question mark begins the query of a web address
    try:
        if any(mark in url for mark in magic):
            return _remote_glob(place, magic)
        if given.endswith("/") or place.is_dir():
            listing = list_remote(place)
            if not listing.files:
                raise CorpusError("the folder lists no files", where=str(place), todo="give its files, or a tar of it")
            return Found(place, listing.files, False, listing.hidden)
        place.stat()
    except OSError as error:
        raise CorpusError(
            f"the input cannot be read: {error.strerror}", where=str(place), todo="check the address"
        ) from error
    return Found(place.parent, [path_text(place.name)], named=True)


def _remote_glob(place: RemotePath, magic: str) -> Found:
    above = place
    while any(mark in above.base for mark in magic):
        above = above.parent
    pattern = place.base.removeprefix(f"{above.base}/")
    matches = above.glob(pattern)
    files = matches if "/." in f"/{pattern}" else [path for path in matches if "/." not in f"/{path}"]
    if not files:
        raise CorpusError("the pattern matches no file", where=str(place), todo="check the pattern, and quote it")
    return Found(above, sorted(path_text(path) for path in files))


def _folder(place: Path) -> Found:
    listing: Listing = list_folder(place)
    return Found(place.resolve(), listing.files, False, listing.hidden, listing.special)


def _single(place: Path) -> Found:
    if not place.is_file():
        raise CorpusError("the input is neither a regular file nor a folder", where=str(place))
    return Found(place.absolute().parent, [path_text(place.name)], named=True)


def _glob(pattern: str) -> Found:
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed]) if fixed else Path()
    files: set[str] = set()
    hidden = special = 0
    for match in glob.glob(pattern, recursive=True):  # noqa: PTH207 - Path.glob would match hidden files
        place = Path(match)
        if place.is_dir():
            if parts[-1] != "**":
                below = list_folder(place)
                inside = path_text(place.relative_to(root).as_posix())
                files.update(f"{inside}/{path}" for path in below.files)
                hidden, special = hidden + below.hidden, special + below.special
        elif place.is_file() or place.is_symlink():
            files.add(path_text(place.relative_to(root).as_posix()))
        else:
            special += 1
    if not files:
        raise CorpusError("the pattern matches no file", where=pattern, todo="check the pattern, and quote it")
    return Found(root.resolve(), sorted(files), False, hidden, special)


def _group(founds: Iterable[Found]) -> list[Found]:
    """Put files named in a row out of one folder together: a shell's expansion reads like the quoted glob."""
    groups: list[Found] = []
    for found in founds:
        last = groups[-1] if groups else None
        if last is not None and found.named and last.named and found.root == last.root:
            last.files += found.files
        else:
            groups.append(found)
    return groups


class _Builder:
    """Collects sources with distinct names, and remarks on what was left out."""

    def __init__(self, modality: Modality, settings: CorpusSettings) -> None:
        self.modality = modality
        self.settings = settings
        self.sources: list[Source] = []
        self.remarks: list[str] = []

    def take(self, found: Found) -> None:
        """Make sources of one group of files."""
        files = [path for path in found.files if self._wanted(path)]
        media = MEDIA.get(self.modality, frozenset())
        chosen = [path for path in files if extension(path) in media]
        stems = {stem(path) for path in chosen}
        companions = {p for p in files if extension(p) in CAPTION | RECORD and stem(p) in stems} if chosen else set()
        if self.modality == "text" and not found.named:
            companions = self._beside_media(found, files)
        rest = [path for path in files if extension(path) not in media and path not in companions]
        if chosen:
            name = self._distinct(found.root.name or "root")
            ordered = tuple(sorted(chosen))
            self.sources.append(FilesSource(name, found.root, ordered, frozenset(companions), self.settings))
        left: Counter[str] = Counter()
        for path in rest if found.named else sorted(rest):
            if not self._open(found, path):
                left[extension(path)] += 1
        self._remark(found, left, len(found.files) - len(files))

    def _beside_media(self, found: Found, files: Sequence[str]) -> set[str]:
        """Open the caption files that lie beside media files as one source."""
        stems = {stem(path) for path in files if any(extension(path) in kinds for kinds in MEDIA.values())}
        beside = sorted(path for path in files if extension(path) in CAPTION and stem(path) in stems)
        if beside:
            name = self._distinct(found.root.name or "root")
            self.sources.append(CaptionFilesSource(name, found.root, tuple(beside), settings=self.settings))
        return set(beside)

    def _open(self, found: Found, path: str) -> bool:
        """Open a file that is no media file; False if it is nothing of the modality."""
        kind, place = extension(path), found.root / path
        text = self.modality == "text"
        if text and kind in LINES:
            self.sources.append(LinesSource(self._distinct(path), place))
        elif kind in ARCHIVES:
            self.sources.append(TarSource(self._distinct(path), place, self.modality, self.settings))
        elif kind in TABLES and (text or found.named):
            return self._open_table(found, path)
        elif found.named:
            raise self._refusal(place, kind)
        else:
            return False
        return True

    def _open_table(self, found: Found, path: str) -> bool:
        """Open a table; one that merely lies in a folder and lacks the column is passed over with a remark."""
        try:
            self.sources.append(TableSource.open(self._distinct(path), found.root / path, self.modality, self.settings))
        except NoColumnError as error:
            if found.named:
                raise
            self.remarks.append(f"{path}: {error.what}")
        return True

    def _refusal(self, place: Place, kind: str) -> CorpusError:
        if kind in COMPRESSED:
            return CorpusError("compressed inputs are not read", where=str(place), todo="unpack it first")
        return CorpusError(
            f"a .{kind} file is no {self.modality} input"
            if kind
            else f"a file without extension is no {self.modality} input",
            where=str(place),
            todo=f"looked for {looked_for(self.modality)}",
        )

    def _wanted(self, path: str) -> bool:
        pattern = self.settings.pattern
        beside = ARCHIVES if self.modality == "text" else ARCHIVES | CAPTION | RECORD
        return pattern is None or fnmatchcase(path, pattern) or extension(path) in beside

    def _distinct(self, name: str) -> str:
        """The name, or ``name~2``, ``name~3`` ... where earlier sources have it."""
        taken = {source.name for source in self.sources}
        names = (name if n == 1 else f"{name}~{n}" for n in range(1, len(taken) + 2))
        return next(n for n in names if n not in taken)

    def _remark(self, found: Found, left: Counter[str], unmatched: int) -> None:
        where = found.root.name or str(found.root)
        if left:
            kinds = ", ".join(f"{n} {'.' + ext if ext else 'without extension'}" for ext, n in sorted(left.items()))
            self.remarks.append(f"{where}: {sum(left.values())} files are no {self.modality} input: {kinds}")
        if unmatched:
            self.remarks.append(f"{where}: {unmatched} files do not match the pattern {self.settings.pattern!r}")
        if found.hidden:
            self.remarks.append(f"{where}: {found.hidden} hidden entries (names that begin with a dot) are left out")
        if found.special:
            self.remarks.append(f"{where}: {found.special} pipes, sockets or devices are left out")
