"""A benchmark's list beside a media folder: inputs for ``cmcr encode``, pairs and items for ``cmcr evaluate``."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....cache import fsio
from ....cache.errors import CmcrError
from ...corpora.names import MEDIA, extension
from .benchmarks import BENCHMARKS, Benchmark, ListOptions
from .entries import Entry, Prepared

REPORT = "prepared.json"
_SHOWN = 3
# meshes of ModelNet are no inputs of `cmcr encode`: points are sampled first
_USABLE = {**MEDIA, "pointcloud": frozenset({"npy", "npz"})}


def prepare(
    benchmark: str,
    *,
    media: str | Path | Sequence[str | Path],
    list_file: str | Path,
    output: str | Path,
    options: ListOptions | None = None,
) -> Prepared:
    """Pair an official list with a folder of media files, and say which are missing.

    Writes to ``output``, each file atomically: ``<modality>.jsonl`` for ``cmcr encode`` (keys, paths or captions,
    labels), ``items.jsonl`` for the localization protocols, ``pairs.csv`` between the two modalities (keys are equal
    there too, so retrieval by key needs none), ``classes.txt`` where the list has classes, and ``prepared.json`` with
    every missing key.

    Parameters
    ----------
    benchmark : str
        A name of :data:`BENCHMARKS`.
    media : path or sequence of paths
        Folders, searched through; a file belongs to an item by its name without extension.
    list_file : path
        The official list.
    output : path
        A folder.
    options : ListOptions, optional
        What else the list needs.

    Raises
    ------
    CmcrError
        An unknown benchmark, a list of another form, a missing folder, a list of which no item is there.
    """
    found = BENCHMARKS.get(benchmark.lower())
    if found is None:
        raise CmcrError(f"There is no benchmark {benchmark!r}.", todo=f"one of: {', '.join(BENCHMARKS)}")
    entries = found.read(Path(list_file), options or ListOptions())
    if not entries:
        raise CmcrError("The list has no items.", where=str(list_file), todo="give the official list, or another split")
    _refuse_repeats(entries, list_file)
    folders = [Path(one) for one in ([media] if isinstance(media, str | Path) else media)]
    index = MediaIndex.of(folders)
    place = Path(output)
    files: dict[str, str] = {}
    there: dict[str, dict[str, Path]] = {}
    missing: dict[str, tuple[str, ...]] = {}
    for modality in found.modalities:
        if modality == "text":
            files["text.jsonl"] = _text_lines(entries)
            continue
        there[modality], missing[modality] = index.match(entries, modality)
        files[f"{modality}.jsonl"] = _media_lines(entries, modality, there[modality], place)
    if not any(there.values()):
        first = ", ".join(name for entry in entries[:_SHOWN] for name in next(iter(entry.media.values()))[:1])
        raise CmcrError(
            f"None of the {len(entries):,} items of {found.title} has a file there.",
            where=", ".join(map(str, folders)),
            todo=f"name files as the list does: {first}, ... with an extension of audio, images or point clouds",
        )
    files |= _evaluation_files(found, entries, there, place)
    notes = tuple(index.notes)
    counts = {name: len(paths) for name, paths in there.items()}
    written = tuple(place / name for name in (*files, REPORT))
    prepared = Prepared(found.name, place, len(entries), counts, missing, written, notes)
    files[REPORT] = json.dumps(prepared.to_json(), indent=2, ensure_ascii=False) + "\n"
    with fsio.naming_folder(place):
        place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        fsio.write_atomic(place / name, text.encode())
    return prepared


class MediaIndex:
    """Media files below some folders, by modality and by name without extension."""

    def __init__(self) -> None:
        self._paths: dict[str, dict[str, Path]] = {}
        self._several: dict[str, int] = {}
        self.notes: list[str] = []

    @classmethod
    def of(cls, folders: Sequence[Path]) -> MediaIndex:
        """Walk the folders, in sorted order; a folder that is not there is a :class:`CmcrError`."""
        index = cls()
        for folder in folders:
            if not folder.is_dir():
                raise CmcrError("The media folder does not exist.", where=str(folder), todo="check --media")
            for parent, names, files in os.walk(folder):
                names.sort()
                for name in sorted(files):
                    index._add(folder, Path(parent) / name)
        return index

    def _add(self, folder: Path, path: Path) -> None:
        for modality, extensions in _USABLE.items():
            if extension(path.name) in extensions:
                names = self._paths.setdefault(modality, {})
                inside = path.relative_to(folder).as_posix().rpartition(".")[0]
                for name in dict.fromkeys((inside, inside.rpartition("/")[2])):
                    if names.setdefault(name, path) != path:
                        self._several[modality] = self._several.get(modality, 0) + 1

    def match(self, entries: Iterable[Entry], modality: str) -> tuple[dict[str, Path], tuple[str, ...]]:
        """Files by the key of their entry, and the keys without one."""
        names = self._paths.get(modality, {})
        found: dict[str, Path] = {}
        missing: list[str] = []
        for entry in entries:
            path = next((names[name] for name in entry.media.get(modality, ()) if name in names), None)
            if path is None:
                missing.append(entry.key)
            else:
                found[entry.key] = path
        if count := self._several.get(modality):
            self.notes.append(f"{count:,} {modality} files share the name of another; the first by path is taken")
        return found, tuple(missing)


def _refuse_repeats(entries: Sequence[Entry], list_file: str | Path) -> None:
    seen = set[str]()
    for entry in entries:
        if entry.key in seen:
            raise CmcrError(f"The list has {entry.key!r} twice.", where=str(list_file), todo="keep one line of it")
        seen.add(entry.key)


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def media_key(entry: Entry, modality: str) -> str:
    """Key of an entry's file: the entry's own, or the file's where pairs mix sounds and frames of several videos."""
    names = entry.media[modality]
    return names[0] if "/" in entry.key else entry.key


def _media_lines(entries: Sequence[Entry], modality: str, found: Mapping[str, Path], place: Path) -> str:
    records: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.key in found:
            label = {} if entry.label is None else {"label": entry.label}
            path = os.path.relpath(found[entry.key], place)
            key = media_key(entry, modality)
            records.setdefault(key, {"key": key, "path": path, **label, **entry.extra})
    return _lines(records.values())


def _text_lines(entries: Sequence[Entry]) -> str:
    return _lines({"key": e.key, "caption": list(e.captions)} for e in entries if e.captions)


def _evaluation_files(
    benchmark: Benchmark, entries: Sequence[Entry], found: Mapping[str, Mapping[str, Path]], place: Path
) -> dict[str, str]:
    files = {}
    labels = sorted({entry.label for entry in entries if entry.label is not None})
    if labels:
        files["classes.txt"] = "".join(f"{label}\n" for label in labels)
    if len(benchmark.modalities) == 2:
        files["pairs.csv"] = _pairs(benchmark.modalities, entries, found)
    if benchmark.localization:
        both = [e for e in entries if e.boxes is not None and all(e.key in paths for paths in found.values())]
        files["items.jsonl"] = _lines(
            {
                "key": entry.key,
                "audio": media_key(entry, "audio"),
                "image": media_key(entry, "image"),
                "boxes": [list(box) for box in entry.boxes or ()],
                "consensus": benchmark.consensus,
                "path": os.path.relpath(found["image"][entry.key], place),
            }
            for entry in both
        )
    return files


def _pairs(modalities: Sequence[str], entries: Sequence[Entry], found: Mapping[str, Mapping[str, Path]]) -> str:
    """CSV of the keys that belong together, first modality first, of the entries that have both."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("query", "gallery"))
    for entry in entries:
        if "/" in entry.key or not all(entry.key in paths for paths in found.values()):
            continue  # a sound that does not belong to its frame, or a file that is missing
        several = len(entry.captions) > 1
        texts = [f"{entry.key}#{n}" if several else entry.key for n in range(len(entry.captions))]
        writer.writerows((entry.key, key) for key in (texts if "text" in modalities else [entry.key]))
    return table.getvalue()
