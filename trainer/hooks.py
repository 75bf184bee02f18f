"""What the trainer asks of the rooms above it, by registration: imports run downwards only. Imports nothing heavy.

The root package registers the pipeline's function when it is imported, through a function that imports it on first use.
So ``Connector.embed`` can run an encoder although the trainer never imports the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from ..cache.reader import Cache
    from .ranking import Relevance


class InputEncoder(Protocol):
    """Encodes raw inputs of one modality by the name of an encoder."""

    def __call__(
        self, encoder: str, modality: str, inputs: Sequence[Any], *, space_id: str, device: str
    ) -> npt.NDArray[np.float32]:
        """Inputs (texts, paths of files, bytes) to vectors (N, D).

        ``space_id`` is the connector's; an encoder of another space is an :class:`EncoderError`.
        """
        ...


class RelevanceReader(Protocol):
    """Reads which rows of a gallery cache answer which rows of a query cache."""

    def __call__(self, query: Cache, gallery: Cache, *, pairs: str | Path | None, label: str | None) -> Relevance:
        """By equal key; or by pairs from a CSV file, or by an equal field of /meta, where one of these is given."""
        ...


_resolvers: list[Callable[[], InputEncoder]] = []
_relevance: list[Callable[[], RelevanceReader]] = []


def register_relevance_reader(resolver: Callable[[], RelevanceReader]) -> None:
    """Say what reads relevance from caches; ``resolver`` is called on use and may import anything."""
    _relevance[:] = [resolver]


def relevance_reader() -> RelevanceReader | None:
    """The registered reader of relevance, or None."""
    return _relevance[0]() if _relevance else None


def register_input_encoder(resolver: Callable[[], InputEncoder]) -> None:
    """Say where the encoder of raw inputs comes from; ``resolver`` is called on use and may import anything."""
    _resolvers[:] = [resolver]


def input_encoder() -> InputEncoder | None:
    """The registered encoder of raw inputs, or None."""
    return _resolvers[0]() if _resolvers else None
