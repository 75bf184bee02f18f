"""Encoders of third parties: a class in a Python file (``my.py:MyEncoder``) and families of the entry-point group."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from ...cache import plugins
from ...cache.errors import EncoderError
from .base import Encoder, Family, Item, Remarking, Vectors, digest
from .devices import resolve_device

GROUP = "cmcr.encoders"
_MEMBERS = ("name", "modality", "space", "dim", "fingerprint", "decode", "encode")


class SourceEncoder:
    """An encoder from a file: the same one, the file's hash in its fingerprint and no folder in its name."""

    def __init__(self, inner: Encoder, found: plugins.FromFile) -> None:
        self.inner = inner
        self.name = found.name
        self.modality = inner.modality
        self.space = inner.space
        self.dim = inner.dim
        self._found = found

    def fingerprint(self) -> str:
        """Hash of the class's own fingerprint and of the file that holds it."""
        with plugins.named_errors(EncoderError, f"the fingerprint of {self.name}", str(self._found.path)):
            return digest({"source": self._found.source_hash, "inner": self.inner.fingerprint()})

    def decode(self, item: Item) -> Any:
        """What the class makes of one raw item."""
        return self.inner.decode(item)

    def encode(self, batch: Sequence[Any]) -> Vectors:
        """Decoded inputs to vectors (B, D)."""
        return self.inner.encode(batch)

    def remark(self, decoded: Any) -> tuple[str, str] | None:
        """The class's remark on an input, if it makes any."""
        return self.inner.remark(decoded) if isinstance(self.inner, Remarking) else None


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
    found = plugins.load_from_file(name, EncoderError, flag="--encoder")
    with plugins.named_errors(EncoderError, f"making {name}", str(found.path)):
        made = _call(found.value, context)
    missing = [member for member in _MEMBERS if not hasattr(made, member)]
    if missing:
        raise EncoderError(
            f"{name.rpartition(':')[2]} is no encoder: it lacks {', '.join(missing)}",
            where=name,
            todo="docs/encoders.md has a whole example",
        )
    return SourceEncoder(made, found)


def _call(target: Any, context: dict[str, Any]) -> Any:
    """Call a class or function with those settings that its signature takes; a ready object is used as it is."""
    # checked even where nothing takes it; not cpu and auto, since finding a device imports torch
    if context.get("device", "cpu") not in ("cpu", "auto"):
        resolve_device(context["device"])
    if not callable(target):
        return target
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]  # built in C: no signature, so no arguments
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    chosen = {key: value for key, value in context.items() if takes_all or key in parameters}
    if "device" in chosen:
        chosen["device"] = resolve_device(chosen["device"])
    return target(**chosen)


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
