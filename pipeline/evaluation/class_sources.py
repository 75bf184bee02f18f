"""Where the vectors of the classes come from: names in templates through a text encoder, or a cache of prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cache.errors import CmcrError
from ...cache.reader import Cache
from ...trainer.connector import Connector
from ..embed import encode_inputs, load_tower, resolve
from ..relevance import READ_AT_ONCE
from ..shared import SharedView, Vectors
from .prompts import ENSEMBLES, Ensemble, class_vectors, fill, normal_name, read_classes, read_templates

if TYPE_CHECKING:
    from ..encoders.base import Encoder

_PROMPT_NUMBER = re.compile(r"#\d+$")


@dataclass(frozen=True)
class ClassSettings:
    """What the classes are and how their prompts become vectors.

    Parameters
    ----------
    names : path or tuple of str, optional
        Class names, or a file with them (:func:`read_classes`). With ``prompts`` a choice among its classes.
    templates : str or path
        A built-in set or a file (:func:`read_templates`); ``auto``: by the modality of the items.
    prompts : Cache or path, optional
        Prompts that are encoded already; class of a row: its /meta field ``class`` or ``label``, else its key without
        ``#n``.
    encoder : str or Encoder, optional
        Text encoder; the one that the connector records, if not said.
    space : str, optional
        Space of the connector that prompts enter by, where two have text.
    ensemble : str
        ``project-then-average`` or ``average-then-project``.
    """

    names: str | Path | tuple[str, ...] | None = None
    templates: str | Path = "auto"
    prompts: Cache | str | Path | None = None
    encoder: str | Encoder | None = None
    space: str | None = None
    ensemble: Ensemble = "project-then-average"

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise CmcrError(f"There is no ensemble {self.ensemble!r}.", todo=f"one of: {', '.join(ENSEMBLES)}")
        if self.names is None and self.prompts is None:
            raise CmcrError("No classes are named.", todo="--classes FILE, or --prompts CACHE with encoded prompts")

    def classes(self) -> tuple[str, ...] | None:
        """The names that were given; None where the cache of prompts has them."""
        if self.names is None or isinstance(self.names, tuple):
            return self.names
        return read_classes(self.names)

    def record(self, modality: str) -> dict[str, Any]:
        """What of this decides figures, JSON-able."""
        named = self.classes()
        out: dict[str, Any] = {"ensemble": self.ensemble, "class_names": None if named is None else list(named)}
        if self.prompts is None:
            tower = self.encoder if self.encoder is None or isinstance(self.encoder, str) else self.encoder.name
            templates = list(read_templates(self.templates, modality=modality))
            out |= {"templates": templates, "text_encoder": tower, "text_space": self.space}
        return out


@dataclass(frozen=True)
class ClassVectors:
    """Names (C) and unit vectors (C, D) of the classes."""

    names: tuple[str, ...]
    vectors: Vectors


def make_class_vectors(
    settings: ClassSettings, items: SharedView, prompts: SharedView | None, connector: Connector | None, device: str
) -> ClassVectors:
    """One vector of the shared space for each class; settings as in :class:`ClassSettings`."""
    if prompts is not None:
        return _from_cache(settings, prompts)
    names = settings.classes() or ()
    templates = read_templates(settings.templates, modality=items.cache.modality)
    texts = [text for name in names for text in fill(templates, name)]
    groups = np.repeat(np.arange(len(names)), len(templates))  # (P,)
    if connector is not None:
        space, tower = resolve(connector, "text", space=settings.space, encoder=settings.encoder)
        vectors = encode_inputs(tower, "text", texts, space_id=connector.info.spaces[space].id, device=device)
        project = _head(connector, space)
        return ClassVectors(names, class_vectors(vectors, groups, len(names), settings.ensemble, project))
    if settings.encoder is None:
        raise CmcrError("No text encoder is named.", todo="--encoder NAME, --connector DIR or --prompts CACHE")
    tower = settings.encoder
    tower = load_tower(tower, "text", device) if isinstance(tower, str) else tower
    vectors = encode_inputs(tower, "text", texts, space_id=items.cache.manifest.space_id, device=device)
    return ClassVectors(names, class_vectors(vectors, groups, len(names), settings.ensemble, lambda rows: rows))


def _head(connector: Connector, space: str) -> Any:
    return lambda rows: connector.project(rows, space)


def _from_cache(settings: ClassSettings, view: SharedView) -> ClassVectors:
    found = _classes_of(view.cache)
    wanted = settings.classes() or tuple(dict.fromkeys(found))
    number = {normal_name(name): n for n, name in enumerate(wanted)}
    groups = np.array([number.get(normal_name(name), -1) for name in found], np.int64)  # (P,)
    missing = [name for n, name in enumerate(wanted) if not (groups == n).any()]
    if missing:
        raise CmcrError(
            f"The cache of prompts has no row for {len(missing)} of {len(wanted)} classes, such as {missing[0]!r}.",
            where=f"{view.cache.path} (classes such as {sorted(set(found))[:3]})",
            todo="encode prompts for all classes: cmcr evaluate prompts",
        )
    used = np.flatnonzero(groups >= 0)
    project = (lambda rows: rows) if view.connector is None or view.head is None else _head(view.connector, view.head)
    vectors = class_vectors(view.cache.rows(used), groups[used], len(wanted), settings.ensemble, project)
    return ClassVectors(wanted, vectors)


def _classes_of(cache: Cache) -> list[str]:
    """Class of each row of a cache of prompts."""
    out: list[str] = []
    for start in range(0, len(cache), READ_AT_ONCE):
        rows = np.arange(start, min(start + READ_AT_ONCE, len(cache)))
        for key, record in zip(cache.keys(rows), cache.meta(rows), strict=True):
            said = (record or {}).get("class", (record or {}).get("label"))
            out.append(_PROMPT_NUMBER.sub("", key) if said is None else str(said))
    return out
