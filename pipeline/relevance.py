"""Which gallery rows answer which query, read from caches: by equal key, by pairs from a file, or by an equal label."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..cache.errors import CmcrError
from ..cache.reader import Cache
from ..trainer.ranking import Relevance

READ_AT_ONCE = 65536


def relevance_of(
    query: Cache, gallery: Cache, *, pairs: str | Path | None = None, label: str | None = None
) -> Relevance:
    """Read which gallery rows answer which query.

    Parameters
    ----------
    query, gallery : Cache
    pairs : path, optional
        CSV with two columns, query key and gallery key; a first line ``query,gallery`` is a header.
    label : str, optional
        A field of /meta; equal values are relevant. Without pairs and label, equal keys are.

    Raises
    ------
    CmcrError
        Both are given; the file cannot be read, or names keys that the caches do not have; no row has the field;
        nothing matches.
    """
    if pairs is not None and label is not None:
        raise CmcrError("Relevant items come from pairs or from a label, not both.", todo="drop --pairs or --label")
    if pairs is not None:
        return _by_pairs(query, gallery, Path(pairs))
    if label is not None:
        return _by_label(query, gallery, label)
    found = Relevance.from_keys(query.keys(), gallery.keys())
    if not found.counts().any():
        raise CmcrError(
            "No key of the queries is a key of the gallery, so no item would be relevant.",
            where=f"queries: {_examples(query)}; gallery: {_examples(gallery)}",
            todo="say what is relevant with --pairs CSV or --label FIELD",
        )
    return found


def _by_pairs(query: Cache, gallery: Cache, path: Path) -> Relevance:
    lines = read_pairs(path)
    if not lines:
        raise CmcrError("The file of pairs is empty.", where=str(path), todo="write a line query,gallery for each pair")
    sides = []
    for column, (name, cache) in enumerate((("query", query), ("gallery", gallery))):
        keys = [pair[column] for _, pair in lines]
        rows = np.asarray(cache.index_of(keys), dtype=np.int64)
        if (rows < 0).any():
            bad = int(np.argmax(rows < 0))
            raise CmcrError(
                f"{int((rows < 0).sum())} of {len(rows)} pairs name a {name} key that its cache does not have, "
                f"the first is {keys[bad]!r}.",
                where=f"{path}, line {lines[bad][0]}; the cache has {_examples(cache)}",
                todo="write the keys as the caches have them, query first",
            )
        sides.append(rows)
    distinct = np.unique(np.stack(sides, axis=1), axis=0)  # (P, 2)
    return Relevance.from_rows(distinct[:, 0], distinct[:, 1], len(query), len(gallery))


def read_pairs(path: Path) -> list[tuple[int, tuple[str, str]]]:
    """Line number, query key and gallery key of every pair of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError as error:
        raise CmcrError("The file of pairs does not exist.", where=str(path), todo="check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CmcrError(
            f"The file of pairs cannot be read as CSV in UTF-8 ({error}).", where=str(path), todo="save it as such"
        ) from error
    if rows and [cell.strip().lower() for cell in rows[0][1]] == ["query", "gallery"]:
        rows = rows[1:]
    for number, row in rows:
        if len(row) != 2:
            raise CmcrError(
                f"A pair is two columns, query key and gallery key; this line has {len(row)}.",
                where=f"{path}, line {number}",
                todo="quote keys that contain commas",
            )
    return [(number, (row[0], row[1])) for number, row in rows]


def _by_label(query: Cache, gallery: Cache, field: str) -> Relevance:
    mine, theirs = read_labels(query, field), read_labels(gallery, field)
    # Rows without a label match nothing: each side has its own name for them, which no label can have.
    found = Relevance.from_labels(
        ["\0no label of a query" if label is None else label for label in mine],
        ["\0no label of the gallery" if label is None else label for label in theirs],
    )
    if not found.counts().any():
        raise CmcrError(
            f"No label {field!r} of the queries is one of the gallery's, so no item would be relevant.",
            where=f"queries: {_named(mine)}; gallery: {_named(theirs)}",
            todo="use the same names of classes in both caches",
        )
    return found


def read_labels(cache: Cache, field: str) -> list[str | None]:
    """The label of each row as text, None where a row has none.

    Raises
    ------
    CmcrError
        No row has the field; names the fields that there are.
    """
    labels: list[str | None] = []
    fields: set[str] = set()
    for start in range(0, len(cache), READ_AT_ONCE):
        for record in cache.meta(np.arange(start, min(start + READ_AT_ONCE, len(cache)))):
            value = (record or {}).get(field)
            labels.append(None if value is None else str(value))
            fields.update(record or {})
    if all(label is None for label in labels):
        known = f"fields there: {', '.join(sorted(fields)[:10])}" if fields else "its rows have no meta at all"
        raise CmcrError(f"No row has the label {field!r}.", where=f"{cache.path} ({known})", todo="correct --label")
    return labels


def _examples(cache: Cache) -> str:
    keys = cache.keys(np.arange(min(3, len(cache))))
    return "keys such as " + ", ".join(repr(key) for key in keys) if keys else "no rows"


def _named(labels: Sequence[str | None]) -> str:
    return ", ".join(sorted({label for label in labels if label is not None})[:5])
