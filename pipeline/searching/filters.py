"""Which rows of a gallery a search may return: by key, caption or a field of /meta."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import CmcrError
from ...cache.reader import Cache

BLOCK = 8192
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"^\s*(?P<field>[^<>=!~]+?)\s*(?P<op><=|>=|!=|<|>|=|~)\s*(?P<value>.*?)\s*$")


@dataclass(frozen=True)
class Condition:
    """``field op value`` on the record of a row; fields of nested records are joined by dots.

    ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=`` compare numbers as numbers and the rest as text; ``~`` finds the value
    in the text whatever its case, or in a list as one of its members.
    """

    field: str
    op: str
    value: str

    def holds(self, record: dict[str, Any] | None) -> bool:
        """Whether the record fulfils it; one without the field fulfils nothing, ``!=`` neither."""
        there, found = self.value_in(record)
        if not there:
            return False
        if self.op == "~":
            if isinstance(found, list):
                return any(_text(member).casefold() == self.value.casefold() for member in found)
            return self.value.casefold() in _text(found).casefold()
        if isinstance(found, int | float) and not isinstance(found, bool):
            value = _number(self.value)
            return self.op == "!=" if value is None else _COMPARE[self.op](found, value)
        return _COMPARE[self.op](_text(found), self.value)

    def value_in(self, record: dict[str, Any] | None) -> tuple[bool, Any]:
        """Whether the record has the field, and its value."""
        found: Any = record
        for name in self.field.split("."):
            if not isinstance(found, dict) or name not in found:
                return False, None
            found = found[name]
        return True, found


def _number(text: str) -> int | float | None:
    """The number that a text is; whole ones stay exact, as ids of twenty digits need."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def field_names(record: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of the fields of a record, those of nested records joined by dots."""
    for name, value in record.items():
        if isinstance(value, dict) and value:
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def read_condition(text: str) -> Condition:
    """``year >= 2020`` as a condition.

    Raises
    ------
    CmcrError
        It has no operator or no field.
    """
    match = _CONDITION.match(text)
    if match is None:
        raise CmcrError(
            f"The condition {text!r} is not of the form FIELD OPERATOR VALUE.",
            todo="for example --where 'year >= 2020' or --where 'licence = CC-BY'; operators: = != < <= > >= ~",
        )
    return Condition(match["field"], match["op"], match["value"])


@dataclass(frozen=True)
class Filters:
    """What a row must fulfil; all of it.

    Parameters
    ----------
    where : tuple of str
        Conditions on /meta: :func:`read_condition`.
    key_pattern : str, optional
        Shell pattern of the whole key (``*``, ``?``, ``[...]``).
    caption_contains : str, optional
        Words that stand in the caption as written here, whatever their case.
    """

    where: tuple[str, ...] = ()
    key_pattern: str | None = None
    caption_contains: str | None = None

    def __bool__(self) -> bool:
        return bool(self.where) or self.key_pattern is not None or self.caption_contains is not None

    def rows(self, gallery: Cache) -> npt.NDArray[np.int64]:
        """Rows that fulfil it, ascending: (A,). Keys are looked at first, then captions, then records.

        Raises
        ------
        CmcrError
            No row does, or the gallery has no such column.
        """
        conditions = [read_condition(text) for text in self.where]
        self._check_columns(gallery)
        parts = [
            self._among(gallery, np.arange(start, min(start + BLOCK, len(gallery))), conditions)
            for start in range(0, len(gallery), BLOCK)
        ]
        rows: npt.NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *parts])
        if not len(rows):
            self._check_fields(gallery, conditions)
            raise CmcrError(
                f"No row of the gallery fulfils {self.describe()}.",
                where=str(gallery.path),
                todo=f"its keys look like this: {', '.join(gallery.keys(np.arange(min(3, len(gallery)))))}",
            )
        return rows

    def describe(self) -> str:
        """The filters in a line."""
        said = list(self.where)
        said += [f"key {self.key_pattern}"] if self.key_pattern is not None else []
        said += [f"caption with {self.caption_contains!r}"] if self.caption_contains is not None else []
        return " and ".join(said)

    def _check_columns(self, gallery: Cache) -> None:
        for column, wanted in (("meta", bool(self.where)), ("caption", self.caption_contains is not None)):
            if wanted and not gallery.has_column(column):
                raise CmcrError(
                    f"The gallery has no {column} to filter by.",
                    where=str(gallery.path),
                    todo="encode it from a corpus that has them, or filter by key",
                )

    def _check_fields(self, gallery: Cache, conditions: Sequence[Condition]) -> None:
        """Say so where nothing was found because no row has such a field."""
        unseen, known = {one.field: one for one in conditions}, dict[str, None]()
        for start in range(0, len(gallery), BLOCK):
            if not unseen:
                return
            for record in gallery.meta(np.arange(start, min(start + BLOCK, len(gallery)))):
                unseen = {field: one for field, one in unseen.items() if not one.value_in(record)[0]}
                known.update(dict.fromkeys(field_names(record or {})))
        if unseen:
            raise CmcrError(
                f"No row of the gallery has the field {min(unseen)!r}.",
                where=str(gallery.path),
                todo=f"its fields: {', '.join(list(known)[:20])}",
            )

    def _among(
        self, gallery: Cache, rows: npt.NDArray[np.int64], conditions: Sequence[Condition]
    ) -> npt.NDArray[np.int64]:
        if self.key_pattern is not None:
            matches = re.compile(translate(self.key_pattern)).match
            keys = gallery.key_range(int(rows[0]), int(rows[-1]) + 1)
            rows = rows[[matches(key) is not None for key in keys]]
        if self.caption_contains is not None and len(rows):
            words = self.caption_contains.casefold()
            rows = rows[[words in (caption or "").casefold() for caption in gallery.captions(rows)]]
        if conditions and len(rows):
            rows = rows[[all(one.holds(record) for one in conditions) for record in gallery.meta(rows)]]
        return rows
