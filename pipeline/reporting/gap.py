"""The modality gap in two dimensions: both spaces before projection, and the shared one of each run after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..shared import SharedView
from .material import Material, Shown, rows_in

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
POINTS, PANELS, LINES = 300, 8, 40
SIDE, MARGIN = 240.0, 12.0  # of a picture, in the units of its SVG


@dataclass(frozen=True)
class Panel:
    """One picture: ``query`` and ``gallery`` are the path data of their points, ``lines`` of pairs.

    ``facts`` are short figures printed below; where there are ``few`` points they are drawn larger.
    """

    title: str
    query: str
    gallery: str
    lines: str
    facts: tuple[str, ...]
    few: bool = False


@dataclass(frozen=True)
class Sample:
    """Rows that are drawn: of the queries, of the gallery, and (P, 2) places in both of some relevant pairs."""

    query: Ints
    gallery: Ints
    pairs: Ints


def sample_rows(material: Material, seed: int = 0) -> Sample:
    """Up to 300 rows of each side, seeded; a relevant item of each query among them where relevance is known.

    Rows that a projected cache of any run has lost are not among them.
    """
    rng = np.random.default_rng(seed)

    def some(rows: Ints) -> Ints:
        return np.sort(rng.choice(rows, min(POINTS, len(rows)), replace=False))

    relevance = material.relevance
    if relevance is None:
        query, gallery = some(material.query_rows), some(material.gallery_rows)
        return Sample(material.kept_queries(query), material.kept_items(gallery), np.empty((0, 2), np.int64))
    query = material.kept_queries(some(np.flatnonzero(relevance.counts())))
    asking, item = _first_relevant(material, query)
    there = np.isin(item, material.kept_items(item))
    query = asking[there]
    gallery, place = np.unique(item[there], return_inverse=True)
    pairs = np.stack([np.arange(len(query)), place], 1)  # (P, 2)
    if len(gallery) < POINTS:
        others = np.setdiff1d(material.gallery_rows, gallery)
        more = rng.choice(others, min(POINTS - len(gallery), len(others)), replace=False)
        gallery = np.concatenate([gallery, material.kept_items(more)])
    return Sample(query, gallery, pairs)


def _first_relevant(material: Material, query: Ints) -> tuple[Ints, Ints]:
    """Each query with one relevant item; the items of a class are taken in turn, not the first one always."""
    assert material.relevance is not None
    asking, items = list[int](), list[int]()
    for number, row in enumerate(query.tolist()):
        _, item = material.relevance.rows(row, row + 1)
        asking.append(row)
        items.append(int(item[number % len(item)]))
    return np.array(asking, np.int64), np.array(items, np.int64)


def panels_of(material: Material) -> tuple[Panel, ...]:
    """Pictures of a table: before, then after the projection of up to eight runs, best first."""
    sample = sample_rows(material)
    if not len(sample.query) or not len(sample.gallery):
        return ()
    bare = SharedView(material.query), SharedView(material.gallery)
    query, gallery = bare[0].rows(sample.query), bare[1].rows(sample.gallery)
    names = [cache.manifest.space_name for cache in (material.query, material.gallery)]
    out = list[Panel]()
    if query.shape[1] == gallery.shape[1]:
        same = material.query.manifest.space_id == material.gallery.manifest.space_id
        title = f"{names[0]}, as it is" if same else f"before: {names[0]} and {names[1]} as they are"
        out.append(panel(title, query, gallery, sample.pairs))
    else:
        nothing = np.empty((0, 2), np.int64)
        out.append(panel(f"before: {names[0]}, {query.shape[1]} dimensions", query, gallery[:0, :1], nothing))
        out.append(panel(f"before: {names[1]}, {gallery.shape[1]} dimensions", query[:0, :1], gallery, nothing))
    for run in drawn(material):
        projected = run.query.rows(rows_in(run.query, material.query, sample.query))
        found = run.gallery.rows(rows_in(run.gallery, material.gallery, sample.gallery))
        seed = ", first seed" if run.entry.run.seeds > 1 else ""
        out.append(panel(f"after: {run.entry.run.label}{seed}", projected, found, sample.pairs))
    return tuple(out)


def drawn(material: Material) -> Sequence[Shown]:
    """Runs whose shared space is drawn: those with a connector."""
    return [run for run in material.runs if run.connector is not None][:PANELS]


def panel(title: str, query: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32], pairs: Ints) -> Panel:
    """One picture from unit rows (Q, D) and (G, D), either of which may be empty, and pairs of their numbers (P, 2)."""
    both = [part.astype(np.float64) for part in (query, gallery) if len(part)]
    flat, share = project_flat(np.concatenate(both))
    count = len(query)
    one, other = flat[:count], flat[count:]
    facts = [f"{100 * share:.0f}% of the variance drawn"]
    if len(query) and len(gallery):
        facts.insert(0, f"gap {np.linalg.norm(query.mean(0) - gallery.mean(0)):.2f}")
    if len(pairs):
        cosines = query.astype(np.float64) @ gallery.astype(np.float64).T  # (Q, G)
        mean, every = cosines[pairs[:, 0], pairs[:, 1]].mean(), cosines.mean()
        facts.insert(1, f"cosine of pairs {_plain(mean)}, of all {_plain(every)}")
    joined = pairs[np.linspace(0, len(pairs) - 1, min(LINES, len(pairs))).astype(int)] if len(pairs) else pairs
    lines = "".join(f"M{_at(one[q])}L{_at(other[g])}" for q, g in joined)
    return Panel(title, _dots(one), _dots(other), lines, tuple(facts), len(flat) <= POINTS)


def project_flat(rows: Floats) -> tuple[Floats, float]:
    """The first two principal components, (N, 2) within the picture, and their share of the variance.

    One scale for both axes: distances in the picture are to be compared.
    """
    centred = rows - rows.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    flat = np.zeros((len(rows), 2))
    kept = min(2, len(scale))
    flat[:, :kept] = left[:, :kept] * scale[:kept]
    # A singular vector may as well point the other way: the heavier tail goes right and up.
    flat *= np.where((flat**3).sum(0) < 0, -1.0, 1.0)
    total = float((scale**2).sum())
    share = float((scale[:kept] ** 2).sum()) / total if total > 0 else 1.0
    low, high = flat.min(0), flat.max(0)
    zoom = (SIDE - 2 * MARGIN) / max(float((high - low).max()), 1e-12)
    return SIDE / 2 + (flat - (low + high) / 2) * zoom, share


def _plain(cosine: float) -> str:
    """Two decimals, without a sign before zero."""
    return f"{cosine:.2f}".replace("-0.00", "0.00")


def _dots(points: Floats) -> str:
    """Path data of dots: lines of no length, which round caps make visible."""
    return "".join(f"M{_at(point)}h0" for point in points)


def _at(point: Floats) -> str:
    return f"{point[0]:.1f} {SIDE - point[1]:.1f}"
