"""Where a forward pass runs."""

from __future__ import annotations


def resolve_device(device: str) -> str:
    """``auto`` becomes the best device that torch has here; other names pass as they are."""
    if device != "auto":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
