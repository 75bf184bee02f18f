"""A few queries with their nearest neighbours under several runs, with pictures and sounds where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.reader import Cache
from ...cache.runs import find_source
from ..searcher import Hit, Searcher
from .material import Material, Shown, rows_in
from .media import picture_uri, sound_uri

Ints = npt.NDArray[np.int64]
QUERIES, HITS, RUNS = 6, 5, 4


@dataclass(frozen=True)
class Item:
    """What the page shows of one item: ``words`` always, ``picture`` and ``sound`` as data URIs where there are any."""

    words: str
    key: str
    picture: str = ""
    sound: str = ""


@dataclass(frozen=True)
class Answer:
    """One hit: its item, its cosine, and whether it is relevant (None where that is not known)."""

    item: Item
    score: float
    right: bool | None


@dataclass(frozen=True)
class Example:
    """One query and, by run, what it found."""

    query: Item
    answers: tuple[tuple[str, tuple[Answer, ...]], ...]

    @property
    def pictures(self) -> bool:
        """Whether any answer has a picture: else they are listed as words."""
        return any(answer.item.picture for _, found in self.answers for answer in found)


def examples_of(material: Material, count: int = QUERIES) -> tuple[Example, ...]:
    """Queries evenly spread over those that have something relevant, unpicked, with the hits of up to four runs."""
    if material.relevance is None or not count or not material.runs:
        return ()
    able = material.kept_queries(np.flatnonzero(material.relevance.counts()))
    rows = able[np.unique(np.linspace(0, len(able) - 1, min(count, len(able))).astype(np.int64))]
    rows = np.array([row for row in rows.tolist() if len(material.kept_items(_relevant(material, row)))], np.int64)
    if not len(rows):
        return ()
    relevant = [set(material.gallery.keys(_relevant(material, row))) for row in rows.tolist()]
    found = [(run.entry.run.label, _hits(run, material, rows)) for run in material.runs[:RUNS]]
    items = _items(material.query, rows, material.relevance.classes is not None, _label(material))
    return tuple(
        Example(
            item,
            tuple(
                (label, tuple(_answer(hit, material, relevant[number]) for hit in hits[number]))
                for label, hits in found
            ),
        )
        for number, item in enumerate(items)
    )


def _label(material: Material) -> str | None:
    label: str | None = material.runs[0].entry.subject.get("label")
    return label


def _relevant(material: Material, row: int) -> Ints:
    assert material.relevance is not None
    return material.relevance.rows(row, row + 1)[1]


def _hits(run: Shown, material: Material, rows: Ints) -> list[list[Hit]]:
    """Hits of each query among the rows of the gallery that take part."""
    vectors = run.query.rows(rows_in(run.query, material.query, rows))
    whole = len(material.gallery_rows) == len(material.gallery)
    found = np.empty(0, np.int64) if whole else rows_in(run.gallery, material.gallery, material.gallery_rows)
    among = None if whole else np.sort(found[found >= 0])
    searcher = Searcher(run.connector, run.gallery.cache, index="exact", memory_budget=0)
    return searcher.hits(*searcher.topk(vectors, HITS, among))


def _answer(hit: Hit, material: Material, relevant: set[str]) -> Answer:
    record = material.gallery.meta(np.asarray(material.gallery.index_of([hit.key])))[0] if _label(material) else None
    words = _words(hit.key, hit.caption, record, _label(material))
    path = hit.path or _file(material.gallery, hit.source)
    return Answer(_item(material.gallery, words, hit.key, path), hit.score, hit.key in relevant)


def _items(cache: Cache, rows: Ints, by_label: bool, label: str | None) -> list[Item]:
    columns = zip(cache.keys(rows), cache.captions(rows), cache.sources(rows), cache.meta(rows), strict=True)
    return [
        _item(cache, _words(key, caption, record if by_label else None, label), key, _file(cache, source))
        for key, caption, source, record in columns
    ]


def _words(key: str, caption: str | None, record: Mapping[str, Any] | None, label: str | None) -> str:
    """The caption, else the class, else the key."""
    if caption:
        return caption
    said = (record or {}).get(label or "")
    return key if said is None else str(said)


def _file(cache: Cache, source: str | None) -> Path | None:
    return find_source(cache.path, source) if source else None


def _item(cache: Cache, words: str, key: str, path: Path | None) -> Item:
    modality = cache.manifest.modality
    if path is None or modality == "text":
        return Item(words, key)
    return Item(words, key, picture_uri(modality, path), sound_uri(path) if modality == "audio" else "")
