"""From what was asked to vectors of the shared space: raw inputs, rows of a cache, vectors, mixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...cache.bank import sample_rows
from ...cache.errors import CmcrError
from ...cache.reader import Cache
from ...cache.vectors import Float32, normalize_rows
from ..embed import FLAGS, embed, one_input
from ..queries import Query, cache_queries, query_rows, raw_queries
from ..shared import SharedView, as_cache
from .choice import IndexSettings
from .mixes import Term, blend, read_mix, shown_mix

if TYPE_CHECKING:
    from ...trainer.connector import Connector
    from ..encoders.base import Encoder

Asked = tuple[tuple[Query, ...], Float32]


@dataclass(frozen=True)
class Entrance:
    """How queries enter the shared space: the connector, and what the user said of space and encoder."""

    connector: Connector
    gallery: Cache
    space: str | None = None
    encoder: str | Encoder | None = None
    views: dict[Path, SharedView] = field(default_factory=dict)

    def view(self, cache: Cache) -> SharedView:
        """A cache in the shared space, refused where ``space`` says another one."""
        if cache.path not in self.views:
            view = SharedView(cache, self.connector)
            if self.space is not None and view.head is not None and self.space != view.head:
                raise CmcrError(
                    f"The query cache is in the space {view.head!r}, not in {self.space!r}.",
                    where=str(cache.path),
                    todo="leave --space out: a cache knows its space",
                )
            self.views[cache.path] = view
        return self.views[cache.path]


def ask(entrance: Entrance, asked: dict[str, Any]) -> Asked:
    """Queries as a reader wants to see them, and their unit rows (Q, D): raw inputs, cache rows, vectors, mixes.

    Raises
    ------
    CmcrError
        Nothing was asked, both a cache and raw inputs, or something that cannot become a vector.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    query, key = asked.pop("query", None), asked.pop("key", None)
    mixes, vectors = _listed(asked.pop("mix", None)), asked.pop("vectors", None)
    if key is not None and query is None:
        raise CmcrError("A key picks rows of a query cache, and none was given.", todo="add --query CACHE")
    if query is not None and any(flag in asked for flag in FLAGS):
        raise CmcrError("A search is asked with a query cache or with a raw input, not both.", todo="drop one of them")
    cache = as_cache(query) if query is not None else None
    terms = [term for mix in mixes for term in read_mix(mix)]
    if mixes and (key is not None or (query is not None and all(term.kind != "key" for term in terms))):
        raise CmcrError(
            "A mix does not ask the rows of a query cache.",
            where=f"mix {mixes[0]!r}",
            todo="name one in the mix, as key:rain/0007, and leave --key out; or ask the cache and the mix apart",
        )
    parts: list[Asked] = []
    if cache is not None and not mixes:
        parts.append(_cached(entrance, cache, key))
    for flag in [*(flag for flag in FLAGS if flag in asked), *sorted(set(asked) - set(FLAGS))]:
        parts.append(_raw(entrance, {flag: asked[flag]}))
    if vectors is not None:
        parts.append(_given(entrance, vectors))
    parts += [_mixed(entrance, mix, cache) for mix in mixes]
    if not parts:
        one_input({})  # says what may be asked
    return tuple(query for queries, _ in parts for query in queries), np.concatenate([rows for _, rows in parts])


def sampled(connector: Connector, cache: Cache, settings: IndexSettings) -> Float32:
    """Rows of a query cache on which an index is measured, drawn by the seed: (Q, D) unit rows of the shared space."""
    view = SharedView(cache, connector)
    count = min(len(cache), settings.queries)
    return view.rows(sample_rows(len(cache), count, settings.seed) if count else query_rows(cache, None))


def _listed(mix: str | Sequence[str] | None) -> list[str]:
    return [mix] if isinstance(mix, str) else list(mix or ())


def _cached(entrance: Entrance, cache: Cache, key: str | Sequence[str] | None) -> Asked:
    view = entrance.view(cache)
    rows = query_rows(cache, key)
    return cache_queries(cache, rows), view.rows(rows)


def _raw(entrance: Entrance, inputs: Any, space: str | None = None) -> Asked:
    modality, values = one_input(inputs)
    rows = embed(entrance.connector, space=space or entrance.space, encoder=entrance.encoder, **inputs)
    return raw_queries(modality, values), rows


def _given(entrance: Entrance, vectors: npt.ArrayLike | str | Path) -> Asked:
    """Vectors or a .npy of them: of ``space`` where it is said, else of the shared space."""
    name = "vector"
    if isinstance(vectors, str | Path):
        name = Path(vectors).name
    try:
        read = np.load(vectors, allow_pickle=False) if isinstance(vectors, str | Path) else vectors
        rows = np.atleast_2d(np.array(read, np.float32))
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise CmcrError(f"The vectors cannot be read: {error}.", where=name, todo="give a .npy of numbers") from error
    dim = entrance.connector.dim if entrance.space is None else entrance.connector.head(entrance.space).spec.dim_in
    if rows.ndim != 2 or rows.shape[1] != dim or not np.isfinite(rows).all() or not np.square(rows).sum(1).all():
        raise CmcrError(
            f"Query vectors are finite rows of {dim} numbers, none of them zero; these have the shape {rows.shape}.",
            where=name,
            todo="name the space that they come from with --space; without it they are of the shared space",
        )
    if entrance.space is not None:
        rows = entrance.connector.project(rows, space=entrance.space)
    else:
        normalize_rows(rows)
    labels = [f"{name} {n}" if len(rows) > 1 else name for n in range(len(rows))]
    return tuple(Query(label=label, modality="vector", text=label) for label in labels), rows


def _mixed(entrance: Entrance, mix: str, cache: Cache | None) -> Asked:
    terms = read_mix(mix)
    rows = np.concatenate([_term(entrance, term, cache) for term in terms])  # (T, D)
    vector = blend(rows, [term.weight for term in terms], mix)
    return (Query(label=mix, modality="mix", text=shown_mix(terms)),), vector[None]


def _term(entrance: Entrance, term: Term, cache: Cache | None) -> Float32:
    """One term as a unit row (1, D)."""
    if term.kind == "key":
        source = entrance.gallery if cache is None else cache
        # a row of the gallery is where it is, whatever space the raw terms of the mix enter
        view = SharedView(source, entrance.connector) if cache is None else entrance.view(source)
        return view.rows(query_rows(source, term.value))
    if term.space is not None or entrance.space is None:
        return _raw(entrance, {term.kind: term.value}, term.space)[1]
    here = (
        entrance.connector.info.spaces[entrance.space].modalities if entrance.space in entrance.connector.spaces else ()
    )
    # --space decides between spaces that have the modality; a term of another modality finds its own
    if FLAGS[term.kind] in here or entrance.space not in entrance.connector.spaces:
        return _raw(entrance, {term.kind: term.value})[1]
    return embed(entrance.connector, encoder=entrance.encoder, **{term.kind: term.value})
