"""Encoders of third parties: a class in a Python file (``my.py:MyEncoder``) and families of the entry-point group."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from ...cache.errors import EncoderError
from .base import Encoder, Family, Item, Remarking, Vectors, digest
from .devices import resolve_device

GROUP = "cmcr.encoders"
_FILE_NAME = re.compile(r"(?P<path>.+\.py):(?P<attribute>[A-Za-z_]\w*)")
_MEMBERS = ("name", "modality", "space", "dim", "fingerprint", "decode", "encode")


class SourceEncoder:
    """An encoder from a Python file: the same encoder, with the file's hash in its fingerprint."""

    def __init__(self, inner: Encoder, name: str, source: bytes) -> None:
        self.inner = inner
        self.name = name
        self.modality = inner.modality
        self.space = inner.space
        self.dim = inner.dim
        self._source = hashlib.blake2b(source, digest_size=16).hexdigest()

    def fingerprint(self) -> str:
        """Hash of the class's own fingerprint and of the file that holds it."""
        return digest({"source": self._source, "inner": self.inner.fingerprint()})

    def decode(self, item: Item) -> Any:
        """What the class makes of one raw item."""
        return self.inner.decode(item)

    def encode(self, batch: Sequence[Any]) -> Vectors:
        """Decoded inputs to vectors (B, D)."""
        return self.inner.encode(batch)

    def remark(self, decoded: Any) -> tuple[str, str] | None:
        """The class's remark on an input, if it makes any."""
        return self.inner.remark(decoded) if isinstance(self.inner, Remarking) else None


def is_file_name(name: str) -> bool:
    """Whether an encoder name is of the form ``path/to/my.py:MyEncoder``."""
    return _FILE_NAME.fullmatch(name) is not None


def load_from_file(name: str, **context: Any) -> Encoder:
    """Make the encoder that ``my.py:MyEncoder`` names.

    Parameters
    ----------
    name : str
        Path of a Python file, a colon, and a class (or function, or ready object) in it.
    context
        ``modality``, ``device``, ``precision``: handed to the class where its signature takes them.

    Raises
    ------
    EncoderError
        If the file, the class or a member of the encoder protocol is missing, or if the file or the class raises.
    """
    match = _FILE_NAME.fullmatch(name)
    if match is None:
        raise EncoderError(f"{name!r} is not of the form my.py:MyEncoder")
    path, attribute = Path(match["path"]), match["attribute"]
    if not path.is_file():
        raise EncoderError(
            f"there is no file {path}", where=name, todo="give the path of the Python file, a colon, the class"
        )
    source = path.read_bytes()
    module = _import_file(path, source, name)
    if not hasattr(module, attribute):
        named = [
            key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        raise EncoderError(f"{path} has no {attribute}", where=name, todo=f"it has: {', '.join(named) or 'no class'}")
    made = _call(getattr(module, attribute), name, context)
    missing = [member for member in _MEMBERS if not hasattr(made, member)]
    if missing:
        raise EncoderError(
            f"{attribute} is no encoder: it lacks {', '.join(missing)}",
            where=name,
            todo="docs/encoders.md has a whole example",
        )
    return SourceEncoder(made, name, source)


def _import_file(path: Path, source: bytes, name: str) -> Any:
    """Import a file under a name of its own, so that two files called my.py do not meet."""
    mark = hashlib.blake2b(str(path.resolve()).encode() + b"\0" + source, digest_size=8).hexdigest()
    module_name = f"cmcr_file_{path.stem}_{mark}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise EncoderError(f"{path} cannot be imported", where=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and typing look the module up while it runs
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # anything may be raised by the user's own file; it is named, not swallowed
        del sys.modules[module_name]
        raise EncoderError(f"{path} raised {type(error).__name__}: {error}", where=name) from error
    return module


def _call(target: Any, name: str, context: dict[str, Any]) -> Any:
    """Call a class or function with those settings that its signature takes; a ready object is used as it is."""
    if not callable(target):
        return target
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]  # built in C: no signature, so no arguments
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    chosen = {key: value for key, value in context.items() if takes_all or key in parameters}
    if "device" in chosen:  # only here, because finding a device imports torch
        chosen["device"] = resolve_device(chosen["device"])
    try:
        return target(**chosen)
    except EncoderError:
        raise
    except Exception as error:  # the user's own constructor: named, not swallowed
        raise EncoderError(f"making {name} raised {type(error).__name__}: {error}", where=name) from error


def installed_families() -> dict[str, EntryPoint]:
    """Entry points of the group ``cmcr.encoders`` by name; nothing is imported yet."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load_family(point: EntryPoint) -> Family:
    """The family that an entry point names: an object with ``name`` and ``load``, or a class of such."""
    try:
        found = point.load()
        family = found() if inspect.isclass(found) else found
    except Exception as error:  # a broken third-party package must name itself, not end in a traceback
        raise EncoderError(
            f"the encoder family {point.name!r} cannot be imported: {type(error).__name__}: {error}", where=point.value
        ) from error
    if not hasattr(family, "load"):
        raise EncoderError(f"the encoder family {point.name!r} has no load method", where=point.value)
    return cast(Family, family)
