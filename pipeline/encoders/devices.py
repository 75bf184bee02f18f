"""Where a forward pass runs."""

from __future__ import annotations


def resolve_device(name: str) -> str:
    """:func:`cmcr.trainer.device.resolve_device` as text; torch is imported only where it has to be asked."""
    if name == "cpu":
        return name
    from ...trainer.device import resolve_device as resolved

    return str(resolved(name))
