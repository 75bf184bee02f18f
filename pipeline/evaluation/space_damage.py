"""Source-space damage as an evaluation of its own: one look, one result file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...trainer.connector import Connector
from ..damage import damage_question, damage_table, evaluate_damage
from ..shared import SharedView, as_cache, as_connector
from .results import check_place, digest_of_file, existing_result, subject, write_result

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class DamageReport:
    """One look at damage: ``figures`` as :class:`cmcr.pipeline.damage.Damage` records them, and what was evaluated."""

    figures: Mapping[str, Any]
    record: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record; equal input gives equal content."""
        return {**self.record, "figures": dict(self.figures)}

    def table(self) -> Table:
        """The figures as a table for the terminal, shares in percent."""
        return damage_table([self.figures])


def evaluate_space_damage(
    connector: Connector | str | Path,
    query: str | Path,
    *,
    classes: str | Path | None = None,
    gallery: str | Path | None = None,
    label: str | None = None,
    class_label: str | None = None,
    pairs: str | Path | None = None,
    output: str | Path | None = None,
    device: str | None = None,
    skip_existing: bool = False,
) -> DamageReport:
    """What projection costs a space: a task inside it, before and after; fields as in a ``[[damage]]`` table.

    Parameters
    ----------
    connector : Connector or path
    query : path
        A cache of one of the connector's spaces.
    classes, label, class_label : optional
        Cache of class names of the same space; fields of /meta with a query's class and a name's. Zero-shot top-1.
    gallery, pairs : path, optional
        Cache of the same space: retrieval R@1 by key, by label, or by a CSV of pairs.
    output : path, optional
        A JSON file, written atomically.
    device : str, optional
        Where heads run.
    skip_existing : bool
        Return what ``output`` holds where it is of this very subject.

    Raises
    ------
    RecipeError, CacheError, CmcrError
    """
    place = check_place(output, skip_existing)
    fields: dict[str, Any] = {"classes": classes, "gallery": gallery, "label": label}
    fields |= {"class_label": class_label, "pairs": pairs}
    one, loaded = damage_question(query, **fields), as_connector(connector, device)
    caches = {"query": one.query, "answers": one.classes or one.gallery or ""}
    views = {name: SharedView(as_cache(path), loaded) for name, path in caches.items()}
    right = {"label": label, "class_label": class_label, "pairs": None if pairs is None else digest_of_file(pairs)}
    record = subject("damage", loaded, views, {"task": "classes" if one.classes else "gallery", **right})
    if place is not None and skip_existing and (found := existing_result(place, record)) is not None:
        return DamageReport(found["figures"], {name: found[name] for name in record})
    report = DamageReport(evaluate_damage(loaded, query, **fields).to_json(), record)
    if place is not None:
        write_result(report.to_json(), place)
    return report
