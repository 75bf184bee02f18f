"""Caches as seen in the shared space: which head they go through, and their rows after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..cache.errors import CacheError
from ..cache.reader import Cache, open_cache
from ..trainer.connector import Connector
from ..trainer.device import resolve_device

if TYPE_CHECKING:
    from ..cache.manifest import CacheManifest

Vectors = npt.NDArray[np.float32]


def connector_fingerprint(connector: Connector) -> str:
    """Hash of everything that decides a projected vector: the spaces' ids, the kinds of the heads and their weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name in connector.spaces:
        head = connector.heads[name]
        record = {"name": name, "id": connector.info.spaces[name].id, "projector": head.spec.to_json()}
        digest.update(json.dumps(record, sort_keys=True).encode())
        for field, tensor in sorted(head.state_dict().items()):
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"\0{field} {array.dtype.str} {array.shape}\0".encode())
            digest.update(memoryview(array).cast("B") if array.size else b"")
    return digest.hexdigest()


def as_connector(connector: Connector | str | Path, device: str | None = None) -> Connector:
    """A connector, or the folder of one, on the device; None leaves it where it is."""
    loaded = connector if isinstance(connector, Connector) else Connector.load(connector)
    return loaded if device is None else loaded.to(resolve_device(device))


def as_cache(cache: Cache | str | Path) -> Cache:
    """A cache, or the folder of one."""
    return cache if isinstance(cache, Cache) else open_cache(cache)


def shared_space_id(connector: Connector) -> str:
    """Space id of everything that this connector has projected."""
    return f"shared:{connector_fingerprint(connector)}"


def head_of(connector: Connector, manifest: CacheManifest, where: object) -> str | None:
    """Name of the head that takes a cache into the shared space; None for a cache that is there already.

    Raises
    ------
    CacheError
        The cache was projected by another connector.
    ConnectorError
        The cache is in none of the connector's spaces.
    """
    if manifest.kind != "projected":
        return connector.space_of(manifest)
    mine = shared_space_id(connector)
    if manifest.space_id != mine:
        raise CacheError(
            f"This cache was projected by another connector ({manifest.space_id}) than the one given ({mine}).",
            where=str(where),
            todo="project the cache that it was made from again with this connector (cmcr project), "
            "or search with the connector that projected it",
        )
    return None


class SharedView:
    """A cache as unit rows of the space in which queries and gallery are compared.

    Parameters
    ----------
    cache : Cache
        Raw (in one of the connector's spaces: its head is applied on the fly) or projected by the same connector.
    connector : Connector, optional
        Without one the rows are compared as they are.
    """

    def __init__(self, cache: Cache, connector: Connector | None = None) -> None:
        self.cache = cache
        self.connector = connector
        self.head = head_of(connector, cache.manifest, cache.path) if connector is not None else None
        self.dim: int = cache.dim if connector is None or self.head is None else connector.dim
        manifest = cache.manifest
        self.space_id: str = manifest.space_id if connector is None else shared_space_id(connector)

    def __len__(self) -> int:
        return len(self.cache)

    def _shared(self, vectors: Vectors) -> Vectors:
        if self.connector is None or self.head is None:
            return vectors
        return self.connector.project(vectors, space=self.head)

    def rows(self, indices: npt.NDArray[np.int64]) -> Vectors:
        """Rows by global index: (B, D) float32, unit."""
        return self._shared(self.cache.rows(indices))

    def blocks(self, size: int, first: int = 0) -> Iterator[tuple[int, Vectors]]:
        """Rows from ``first`` on, in order: (number of a block's first row, (<= size, D) float32 unit rows).

        Memory stays within a block.
        """
        for start in range(first, len(self.cache), size):
            yield start, self._shared(self.cache.read(start, min(start + size, len(self.cache))))
