"""Find a method by its name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ...cache.errors import RecipeError
from . import BUILT_IN
from .base import Method

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
    if ".py:" in name:
        return _made(_from_file(name), name)
    plugin = _plugins().get(name)
    if plugin is None:
        known = method_names()
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise RecipeError(
            f"unknown method {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
            where="fit.method",
            todo=f"known methods: {', '.join(known)}; or my.py:MyMethod",
        )
    try:
        loaded = plugin.load()
    except Exception as error:  # another package's code: anything can happen on import
        raise RecipeError(
            f"the method {name!r} ({plugin.value}) cannot be loaded: {error}", where="fit.method"
        ) from error
    return _made(loaded, name)


def _from_file(name: str) -> Any:
    """The object that ``path/to/my.py:MyMethod`` names."""
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise RecipeError(
            f"there is no file {file}", where=f"fit.method = {name!r}", todo="give the path of an existing file"
        )
    spec = importlib.util.spec_from_file_location(f"cmcr_method_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{file} cannot be read as Python", where=f"fit.method = {name!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code: anything can happen on import
        raise RecipeError(
            f"{file} failed while it was imported: {type(error).__name__}: {error}", where=str(path)
        ) from error
    if not hasattr(module, attribute):
        names = ", ".join(n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__)
        raise RecipeError(
            f"{file} has no {attribute!r}; its classes: {names or 'none'}", where=f"fit.method = {name!r}"
        )
    return getattr(module, attribute)


def _made(found: Any, name: str) -> Method:
    """A method from a class, or the object itself where it is one already."""
    method = found() if inspect.isclass(found) else found
    if not isinstance(method, Method):
        raise RecipeError(
            f"{name!r} is not a method: it needs a name and fit(pairs, settings, run) -> {{space: Projector}}",
            where="fit.method",
            todo="see cmcr.trainer.methods.base.Method",
        )
    return method
