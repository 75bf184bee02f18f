"""Methods by name: built in, from packages that register the entry-point group ``cmcr.methods``, or from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...cache.errors import CmcrError as CmcrError

if TYPE_CHECKING:
    from .base import Method

# Home module and class of each built-in method; imported when it is asked for.
BUILT_IN = {
    "identity": ("identity", "Identity"),
    "procrustes": ("procrustes", "Procrustes"),
    "ridge": ("ridge", "Ridge"),
    "bridge": ("bridge", "Bridge"),
    "c-mcr": ("cmcr", "Cmcr"),
    "ex-mcr": ("ex_mcr", "ExMcr"),
    "weave": ("weave", "Weave"),
}


def method_names() -> tuple[str, ...]:
    """Names of all methods that are installed, built in first."""
    from .registry import method_names

    return method_names()


def get_method(name: str) -> Method:
    """The method of that name, or of ``my.py:MyMethod``; an unknown one is a :class:`RecipeError` with a suggestion."""
    from .registry import get_method

    return get_method(name)
