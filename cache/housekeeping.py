"""Taking shards back, and removing what a committed marker no longer names."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from . import fsio, lease_files
from . import manifest as manifests
from . import marker as markers
from .commit import drop, remove_generation
from .errors import CacheError
from .urls import as_url

FOLDERS = ("shards", "errors", "runs", "index", lease_files.FOLDER)


def refuse_foreign_folder(path: Path) -> None:
    """Refuse a file, a URL, and a folder that holds something else than a cache.

    Raises
    ------
    CacheError
    """
    todo = "choose another --output"
    if (url := as_url(path)) is not None:
        raise CacheError(
            "Caches are written to a file system: a commit needs its renames.",
            where=url,
            todo="give a local path, and copy the finished cache there",
        )
    if path.exists() and not path.is_dir():
        raise CacheError("A file stands where the cache folder should be.", where=str(path), todo=todo)
    manifest = path / manifests.MANIFEST_NAME
    if manifest.exists():
        try:
            record = json.loads(manifest.read_bytes())
        except ValueError:
            return  # a damaged manifest; read_manifest or --overwrite deals with it
        if not isinstance(record, dict) or record.get("format") != manifests.FORMAT:
            raise CacheError("cache.json there is not of this format.", where=str(path), todo=todo)
    elif path.is_dir():
        with os.scandir(path) as entries:
            others = sorted(e.name for e in entries if e.name not in FOLDERS and not fsio.is_temporary(e.name))
        if others and not manifest.exists():  # else another worker has just begun this very cache
            raise CacheError(f"The folder holds {', '.join(others[:3])} and is no cache.", where=str(path), todo=todo)


def refuse_while_others_write(path: Path) -> None:
    """Refuse to take back shards of a cache that other workers are filling.

    Raises
    ------
    CacheError
    """
    claims = lease_files.read_claims(path).values()
    names = sorted({c.holder.worker for c in claims if c.holder is not None and not c.holder.is_dead()})
    if names:
        raise CacheError(
            f"Other workers hold leases on this cache: {', '.join(names[:3])}.",
            where=str(path / lease_files.FOLDER),
            todo="let them finish, or end them and remove that folder, then overwrite",
        )


def sweep(path: Path) -> None:
    """Remove temporary files of dead processes of this machine, in every folder of the cache.

    Markers on their way go too, whoever's they are: their writer, if it is alive, finds out and sends another.
    """
    for folder in (path, path / "shards", path / "errors", path / "index", path / lease_files.FOLDER):
        fsio.sweep(folder)
    with contextlib.suppress(FileNotFoundError), os.scandir(path / "shards") as entries:
        for name in [entry.name for entry in entries if markers.WAY_NAME.match(entry.name)]:
            fsio.remove(path / "shards" / name)


def take_back_everything(path: Path) -> None:
    """Overwrite: drop every shard, remove its files, then the plan, last generation first."""
    taken = []
    for file in markers.list_markers(path / "shards").values():
        try:
            found = markers.read_marker(file)
        except CacheError:
            continue  # the rewrite of a shard whose marker is damaged finds a free generation by itself
        if found.state == "done" and drop(path, found):
            taken.append(found)
    if taken:
        fsio.sync_folder(path / "shards")
    for found in taken:
        remove_generation(path, found)
    for plan in reversed(manifests.list_plans(path)):
        fsio.remove(plan)


def remove_superseded(path: Path) -> None:
    """Remove files of generations before the committed ones, left by a process that died after a commit."""
    found: list[tuple[Path, int, int]] = []
    for folder, pattern in (("shards", markers.DATA_NAME), ("errors", markers.LEDGER_NAME)):
        with os.scandir(path / folder) as entries:
            matches = [match for entry in entries if (match := pattern.match(entry.name))]
        found += [(path / folder / match[0], int(match[1]), int(match[2] or 0)) for match in matches]
    latest: dict[int, int] = {}
    for _, shard, generation in found:
        latest[shard] = max(generation, latest.get(shard, 0))
    for file, shard, generation in found:
        if generation < latest[shard]:
            marker = markers.find_marker(path, shard)
            if marker is not None and marker.state == "done" and generation < marker.generation:
                fsio.remove(file)


def free_generation(path: Path, shard: int) -> int:
    """One more than any generation of which a data file is there, for a shard whose marker is damaged."""
    with os.scandir(path / "shards") as entries:
        matches = [match for entry in entries if (match := markers.DATA_NAME.match(entry.name))]
    return 1 + max((int(match[2]) for match in matches if int(match[1]) == shard), default=0)
