"""The tables of a recipe, beside ``[fit]``: each a validated record, paths as they are written."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .settings import FitSettings

PATHS = ("query", "gallery", "pairs", "classes")
# What a table [compare.NAME] may not set: places and seeds are the comparison's own.
_NOT_COMPARED = {"output", "seed"}


class SpaceRecipe(BaseModel):
    """The caches of one space: its side of the overlap, and caches of another modality as memory bank."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    overlap: str
    bank: tuple[str, ...] = ()

    @field_validator("bank", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class EvalRecipe(BaseModel):
    """One evaluation set: query, gallery, and what is relevant (equal keys unless pairs or a label say else).

    Parameters
    ----------
    name, query, gallery : str
        ``query`` and ``gallery`` are caches.
    pairs : str, optional
        CSV of query key and gallery key.
    label : str, optional
        Field of /meta; rows with an equal value are relevant.
    macro : bool, optional
        Show means over the queries of a class, then over the classes; true where a label says what is relevant.
    no_class : tuple of str
        Values of the label that are no class: rows that have one are relevant to nothing.
    distractors : bool
        Keep rows that nothing on the other side is relevant to. False leaves them out of both sides.
    ties : str
        ``expected`` or ``optimistic``; see docs/metrics.md.
    ks : tuple of int
        Cut-offs of recall and precision.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    query: str
    gallery: str
    pairs: str | None = None
    label: str | None = None
    macro: bool | None = None
    no_class: tuple[str, ...] = ()
    distractors: bool = True
    ties: Literal["expected", "optimistic"] = "expected"
    ks: tuple[int, ...] = Field(default=(1, 5, 10), min_length=1)

    @field_validator("ks")
    @classmethod
    def _cut_offs(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
            raise ValueError("cut-offs are whole numbers from 1")
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _classes_need_a_label(self) -> EvalRecipe:
        if self.label is None and (self.macro or self.no_class):
            raise ValueError("macro and no_class need a label: without one there are no classes")
        return self

    @property
    def by_class(self) -> bool:
        """Whether the means to look at are over classes."""
        return self.label is not None if self.macro is None else self.macro


class ValidationRecipe(BaseModel):
    """The pair that early stopping looks at: query, gallery, and what is relevant, as in :class:`EvalRecipe`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str
    gallery: str
    pairs: str | None = None
    label: str | None = None


class DamageRecipe(BaseModel):
    """One look at what projection does to a space: a task inside it, before and after; query and classes, or gallery.

    Parameters
    ----------
    name, query : str
        ``query`` is a cache.
    classes : str, optional
        Cache of class names in the same space, a row each: zero-shot classification of the queries.
    label : str, optional
        Field of /meta: the class of a query; with a gallery, what makes rows relevant.
    class_label : str, optional
        Field of /meta with the name of a class; its key is the name if not given.
    gallery, pairs : str, optional
        Retrieval inside the space instead, relevance as in :class:`EvalRecipe`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    query: str
    classes: str | None = None
    label: str | None = None
    class_label: str | None = None
    gallery: str | None = None
    pairs: str | None = None

    @model_validator(mode="after")
    def _one_task(self) -> DamageRecipe:
        if (self.classes is None) == (self.gallery is None):
            raise ValueError("name classes (zero-shot) or a gallery (retrieval), one of the two")
        if self.classes is not None and self.label is None:
            raise ValueError("zero-shot needs label, the field of /meta with the class of each query")
        if self.classes is not None and self.pairs is not None:
            raise ValueError("pairs belong to a gallery")
        if self.gallery is not None and self.class_label is not None:
            raise ValueError("class_label belongs to classes")
        return self


def checked_compare(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tables ``[compare.NAME]``: settings of a fit for one row of a comparison; ValueError for an unknown one."""
    known = sorted(set(FitSettings.model_fields) - _NOT_COMPARED)
    for name, table in tables.items():
        for key in table:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"unknown key {key!r} in compare.{name}{hint} Known: {', '.join(known)}")
    return {name: dict(table) for name, table in tables.items()}
