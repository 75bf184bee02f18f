"""Canonical JSON: equal content gives equal bytes, so that caches can be compared file by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import CacheError


def encode_text(text: str, fallback: str) -> bytes:
    """UTF-8, or the ASCII-escaped fallback where the text holds unpaired surrogates (file names that are not UTF-8)."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return fallback.encode("ascii")


def to_pretty(record: Any) -> bytes:
    """Sorted keys, indent 2, final newline."""
    options: dict[str, Any] = {"sort_keys": True, "indent": 2, "allow_nan": False}
    text = json.dumps(record, ensure_ascii=False, **options)
    return encode_text(text, json.dumps(record, **options)) + b"\n"


def to_line(record: Any) -> bytes:
    """Sorted keys, one line, no newline."""
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return encode_text(text, json.dumps(record, sort_keys=True, allow_nan=False))


def read_object(path: Path, kind: str, version: int, todo: str) -> dict[str, Any]:
    """Read a JSON object and check its ``format`` and ``version``.

    Raises
    ------
    CacheError
        The file is not JSON, not of this format, or of a version that this release does not know.
    """
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(
            f"This file cannot be read as JSON ({type(error).__name__}).", where=str(path), todo=todo
        ) from error
    if not isinstance(record, dict) or record.get("format") != kind:
        raise CacheError(f"This file is not a {kind} record.", where=str(path), todo=todo)
    found = record.get("version")
    if found != version or isinstance(found, bool):
        raise CacheError(
            f"Version {found!r} of the {kind} format is not known; this release reads version {version}.",
            where=str(path),
            todo="install a newer cmcr: pip install --upgrade cmcr",
        )
    return record


def field(record: dict[str, Any], name: str, kind: type, path: Path, todo: str) -> Any:
    """One checked field of a JSON object; integers are not negative, and ``bool`` is no integer."""
    value = record.get(name)
    if not isinstance(value, kind) or (isinstance(value, int) and (isinstance(value, bool) or value < 0)):
        raise CacheError(f"The field {name!r} is {value!r}, not a valid {kind.__name__}.", where=str(path), todo=todo)
    return value
