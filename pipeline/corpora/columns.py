"""Which columns of a table hold keys, captions and paths, and what a row of them is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...cache.errors import CorpusError
from ..encoders.base import Modality
from .base import CorpusSettings
from .keys import unfit

KEYS = ("key", "id")
CAPTIONS = ("caption", "text", "captions", "sentence", "description", "title")
PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path")
OWN_PATHS: dict[Modality, tuple[str, ...]] = {
    "image": ("image", "image_path", "image_file"),
    "audio": ("audio", "audio_path", "audio_file", "wav"),
    "pointcloud": ("points", "pointcloud", "point_cloud", "points_path", "npy"),
}


@dataclass(frozen=True)
class Columns:
    """The columns in use; None where the table has none of the kind."""

    key: str | None
    caption: str | None
    path: str | None


class NoColumnError(CorpusError):
    """A table lacks the column that its modality needs."""


def choose(columns: Sequence[str], modality: Modality, settings: CorpusSettings, where: str) -> Columns:
    """The columns that the settings name, else the first of the usual names that the table has."""
    caption = _pick(columns, settings.caption_column, CAPTIONS, "--caption-column", where)
    key = _pick(columns, settings.key_column, KEYS, "--key-column", where)
    if modality == "text":
        if caption is None and columns:
            raise _none("caption", CAPTIONS, "--caption-column", columns, where)
        return Columns(key, caption, None)
    path = _pick(columns, settings.path_column, (*OWN_PATHS[modality], *PATHS), "--path-column", where)
    if path is None and columns:
        raise _none("path", (*OWN_PATHS[modality], *PATHS), "--path-column", columns, where)
    return Columns(key, caption, path)


def _pick(columns: Sequence[str], named: str | None, usual: Sequence[str], flag: str, where: str) -> str | None:
    if named is None:
        return next((name for name in usual if name in columns), None)
    if columns and named not in columns:
        raise NoColumnError(f"the table has no column {named!r} ({flag})", where=where, todo=_have(columns))
    return named


def _none(what: str, usual: Sequence[str], flag: str, columns: Sequence[str], where: str) -> NoColumnError:
    return NoColumnError(
        f"the table has no {what} column (looked for {', '.join(usual)})",
        where=where,
        todo=f"{_have(columns)}; name one with {flag}",
    )


def _have(columns: Sequence[str]) -> str:
    return f"its columns are {', '.join(columns)}"


def key_text(value: Any) -> str | None:
    """Key of a cell as text, None for one that is empty or no key. ``7``, ``7.0`` and ``"7"`` are one key."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    return str(value) or None if isinstance(value, str | int) else None


def captions_of(value: Any) -> list[Any]:
    """The captions of a cell: those of a list, else the cell itself; at least one entry."""
    return list(value) if isinstance(value, list | tuple) and value else [value]


def caption_problem(value: Any) -> str | None:
    """Why a value is no caption, or None."""
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return "the caption is empty"
    if not isinstance(value, str):
        return f"the caption is a {type(value).__name__}, not a text"
    reason = unfit(value)
    return f"the caption cannot be stored: {reason}" if reason else None


def record_of(values: Mapping[str, Any], used: Columns) -> dict[str, Any] | None:
    """The other columns as a JSON-able record, None if there are none."""
    skip = {used.key, used.caption, used.path}
    record = {name: _json(value) for name, value in values.items() if name not in skip and not isinstance(value, bytes)}
    return record or None


def _json(value: Any) -> Any:
    """A value that JSON can hold: times and decimals as text, NaN and infinities as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items() if not isinstance(v, bytes)}
    if isinstance(value, list | tuple):
        return [_json(v) for v in value]
    return str(value)
