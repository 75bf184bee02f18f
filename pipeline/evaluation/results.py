"""The JSON file of an evaluation: what was evaluated, by which protocol, and the figures.

It has no times, hosts or absolute paths: the same input gives the same bytes. The part before the figures is the
*subject* of the run, which ``--skip-existing`` compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...cache import fsio
from ...cache._version import __version__
from ...cache.errors import CmcrError
from ...cache.manifest import CacheManifest
from ...trainer.connector import Connector
from ..shared import SharedView, connector_fingerprint

FORMAT, VERSION = "cmcr-evaluation", 2
READABLE = (1, VERSION)  # 1 has no intervals


def subject(
    protocol: str, connector: Connector | None, views: Mapping[str, SharedView], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides the figures of a run, as values without times and absolute paths.

    Parameters
    ----------
    protocol : str
        ``retrieval``, ``classification``, ...
    connector : Connector, optional
        None within one space.
    views : mapping of str to SharedView
        The caches, by their part in the protocol.
    settings : mapping
        JSON-able settings that decide figures.
    """
    joined = None
    if connector is not None:
        joined = {
            "fingerprint": connector_fingerprint(connector),
            "method": connector.info.method,
            "spaces": {name: connector.info.spaces[name].id for name in connector.spaces},
        }
    return {
        "format": FORMAT,
        "version": VERSION,
        "protocol": protocol,
        **settings,
        "connector": joined,
        **{name: cache_record(view) for name, view in views.items()},
        "versions": {"cmcr": __version__, "torch": version("torch"), "numpy": version("numpy")},
    }


def cache_record(view: SharedView) -> dict[str, Any]:
    """A cache in a result file: its content and what made it."""
    cache, manifest = view.cache, view.cache.manifest
    return {
        "name": Path(cache.path).resolve().name,
        "content": cache.content_id(),
        "projected_from": projected_from(manifest),
        "fingerprint": manifest.fingerprint,
        "rows": len(cache),
        "space": manifest.space_name,
        "space_id": manifest.space_id,
        "head": view.head,
        "modality": manifest.modality,
        "encoder": manifest.encoder,
    }


def projected_from(manifest: CacheManifest) -> str | None:
    """Content of the raw cache that a projected one was made from; None for others."""
    return str(manifest.made_from["cache"]) if manifest.kind == "projected" else None


def write_result(record: Mapping[str, Any], path: Path) -> None:
    """Write a result file, atomically; its folder is made where it is missing."""
    with fsio.naming_folder(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    fsio.write_atomic(path, text.encode())


def check_place(output: str | Path | None, skip_existing: bool = False) -> Path | None:
    """The place of a result file; refuses a folder, and ``skip_existing`` without a place."""
    if output is None:
        if skip_existing:
            raise CmcrError("There is no file to skip the evaluation for.", todo="name it: --output figures.json")
        return None
    place = Path(output)
    if place.is_dir():
        raise CmcrError(
            "The output is a folder, not a file.", where=str(place), todo="name a file: --output figures.json"
        )
    return place


def digest_of_file(path: str | Path) -> str:
    """Hash of a file that decides figures: pairs, class names, boxes."""
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise CmcrError(f"The file {reason}.", where=str(path), todo="check the path") from error


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result file.

    Raises
    ------
    CmcrError
        No file there, no result of an evaluation, or one of a version that is not known.
    """
    place = Path(path)
    try:
        record = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CmcrError("The result file does not exist.", where=str(place), todo="check the path") from error
    except (OSError, ValueError) as error:
        raise CmcrError(f"The result file cannot be read: {error}", where=str(place), todo="evaluate again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CmcrError("This is no result of an evaluation.", where=str(place), todo="give a file of `cmcr evaluate`")
    if record.get("version") not in READABLE:
        raise CmcrError(
            f"The result file has version {record.get('version')!r}; this package reads {READABLE[0]} to {VERSION}.",
            where=str(place),
            todo="update cmcr, or evaluate again",
        )
    return record


def existing_result(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of the same subject that stands there already; None where there is none, or another one's.

    Any difference of connector, cache contents, settings or versions makes it another one's.
    """
    if not path.exists():
        return None
    try:
        found = read_result(path)
    except CmcrError:
        return None  # of no use: evaluated again and replaced
    plain = json.loads(json.dumps(wanted))
    return found if all(name in found and found[name] == value for name, value in plain.items()) else None
