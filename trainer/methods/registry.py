"""Find a method by its name."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from ...cache.errors import FitError, RecipeError
from ...cache.plugins import is_file_name, load_from_file, named_errors
from ..projectors import Projector
from . import BUILT_IN
from .base import FitRun, Method, is_seeded, wants_completion

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..settings import FitSettings

GROUP = "cmcr.methods"


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def method_names() -> tuple[str, ...]:
    """Names of all methods that are installed, built in first."""
    return (*BUILT_IN, *sorted(set(_plugins()) - set(BUILT_IN)))


def get_method(name: str) -> Method:
    """The method of that name: built in, installed by another package, or a class in a file (``my.py:MyMethod``)."""
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name]
        return _made(getattr(importlib.import_module(f".{module}", __package__), attribute), name)
    if is_file_name(name):
        found = load_from_file(name, RecipeError, flag="--method")
        return _foreign(found.value, name, str(found.path), found.source_hash)
    plugin = _plugins().get(name)
    if plugin is None:
        known = method_names()
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise RecipeError(
            f"unknown method {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
            where="fit.method",
            todo=f"known methods: {', '.join(known)}; or my.py:MyMethod",
        )
    with named_errors(RecipeError, f"loading the method {name!r}", plugin.value):
        loaded = plugin.load()
    return _foreign(loaded, name, plugin.value)


class ForeignMethod:
    """A method of somebody else: the same method, with its errors named and what it returns checked.

    Parameters
    ----------
    inner : Method
    title : str
        How it was asked for.
    where : str
        File or module that holds it.
    source_hash : str, optional
        Of the file; decides with the settings whether an interrupted fit may be continued.
    """

    def __init__(self, inner: Method, title: str, where: str, source_hash: str | None = None) -> None:
        self.inner = inner
        self.name = inner.name
        self.needs_completion = wants_completion(inner)
        self.seeded = is_seeded(inner)
        self.source_hash = source_hash
        self._title = title
        self._where = where

    def fit(self, pairs: Pairs, settings: FitSettings, run: FitRun) -> dict[str, Projector]:
        """The heads that the method makes; a FitError where it raises, or where they do not fit the spaces."""
        with named_errors(FitError, f"the method {self._title}", self._where):
            heads = self.inner.fit(pairs, settings, run)
        problem = _problem(heads, pairs)
        if problem:
            raise FitError(
                f"the method {self._title} {problem}",
                where=self._where,
                todo="fit returns one Projector for each name in pairs.names; docs/recipes.md has a whole example",
            )
        return dict(heads)


def _problem(heads: Any, pairs: Pairs) -> str | None:
    """What is wrong with the heads of a method, in words, or None."""
    if not isinstance(heads, Mapping):
        return f"returned {type(heads).__name__}, not a mapping of space names to heads"
    for name in pairs.names:
        if name not in heads:
            return f"made no head for the space {name!r}; it made: {', '.join(map(str, heads)) or 'none'}"
        if not isinstance(heads[name], Projector):
            return f"made {type(heads[name]).__name__} for the space {name!r}, not a Projector"
        taken, dim = heads[name].spec.dim_in, pairs.overlap[name].dim
        if taken != dim:
            return f"made a head for {taken} dimensions for the space {name!r}, which has {dim}"
    extra = [str(name) for name in heads if name not in pairs.names]
    return f"made a head for {extra[0]!r}, which is no space of this fit" if extra else None


def _foreign(found: Any, name: str, where: str, source_hash: str | None = None) -> Method:
    """A method from a class of somebody else, or from the object itself where it is one already."""
    with named_errors(FitError, f"making the method {name}", where):
        made = found() if inspect.isclass(found) else found
    return ForeignMethod(_made(made, name), name, where, source_hash)


def _made(found: Any, name: str) -> Method:
    """A method from a class, or the object itself where it is one already."""
    method = found() if inspect.isclass(found) else found
    if not isinstance(method, Method):
        raise RecipeError(
            f"{name!r} is not a method: it needs a name and fit(pairs, settings, run) -> {{space: Projector}}",
            where="fit.method",
            todo="docs/recipes.md has a whole example",
        )
    return method
