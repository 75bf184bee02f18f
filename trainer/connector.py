"""The connector: the fitted heads with what they were fitted from. Needs torch, safetensors and numpy alone.

The folder is described in ``docs/connector.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..cache.errors import ConnectorError
from .connector_folder import load, save
from .connector_info import ConnectorInfo
from .hooks import input_encoder
from .projectors import Projector

Vectors = npt.NDArray[np.float32]
DECLARED = "declared:"


class SpaceOf(Protocol):
    """What a cache manifest says about its space."""

    @property
    def space_id(self) -> str: ...
    @property
    def space_name(self) -> str: ...


class Connector:
    """The fitted heads, one for each space, into one shared space.

    Parameters
    ----------
    heads : mapping of str to Projector
        By space name; all give the same number of dimensions. They are put into evaluation mode.
    info : ConnectorInfo
        Describes the same spaces.
    """

    def __init__(self, heads: Mapping[str, Projector], info: ConnectorInfo) -> None:
        without = sorted(set(info.spaces) - set(heads))
        unknown = sorted(set(heads) - set(info.spaces))
        if not heads or without:
            name = f" for the space {without[0]!r}" if without else ""
            raise ConnectorError(f"a connector needs a head{name}; heads: {_listed(heads)}")
        if unknown:
            raise ConnectorError(f"the head {unknown[0]!r} has no description; described: {_listed(info.spaces)}")
        dims = {name: head.spec.dim_out for name, head in heads.items()}
        if len(set(dims.values())) > 1:
            raise ConnectorError(
                "the heads lead to different dimensions: "
                + ", ".join(f"{name} to {dims[name]}" for name in sorted(dims)),
                todo="fit the connector again, or take it from its source again",
            )
        self.heads = {name: heads[name].eval() for name in sorted(heads)}
        self.info = info
        self.device = torch.device("cpu")

    def __repr__(self) -> str:
        spaces = ", ".join(self.describe(name) for name in self.spaces)
        return f"Connector({spaces}, dim={self.dim}, method={self.info.method!r})"

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the spaces, sorted."""
        return tuple(self.heads)

    @property
    def dim(self) -> int:
        """Dimension of the shared space."""
        return next(iter(self.heads.values())).spec.dim_out

    @property
    def kept(self) -> tuple[str, ...]:
        """Spaces whose head is the identity: their vectors are usable in the shared space as they are."""
        return tuple(name for name, head in self.heads.items() if head.spec.kind == "identity")

    def to(self, device: str | torch.device) -> Connector:
        """Move the heads to a device; returns the connector itself."""
        self.device = torch.device(device)
        for head in self.heads.values():
            head.to(self.device)
        return self

    def describe(self, space: str) -> str:
        """A space in words: name, modalities, dimension."""
        modalities = "/".join(self.info.spaces[space].modalities) or "modality not recorded"
        return f"{space} ({modalities}, {self.heads[space].spec.dim_in}-d)"

    def head(self, space: str) -> Projector:
        """The head of a space; raises :class:`ConnectorError` that names the spaces there are."""
        if space not in self.heads:
            raise ConnectorError(
                f"the connector has no space {space!r}; it has "
                + ", ".join(self.describe(name) for name in self.spaces),
                todo="name one of these with --space (Python: space=...)",
            )
        return self.heads[space]

    def space_of(self, manifest: SpaceOf) -> str:
        """Name of the head for a cache's vectors: by space id, else by space name where an id is only declared."""
        by_id = [name for name in self.spaces if self.info.spaces[name].id == manifest.space_id]
        if len(by_id) == 1:
            return by_id[0]
        name = manifest.space_name
        if name in self.heads:
            ours = self.info.spaces[name].id
            if name in by_id or not ours or ours.startswith(DECLARED) or manifest.space_id.startswith(DECLARED):
                return name
            raise ConnectorError(
                f"the cache's space {name!r} is not the one of the connector: same name, other weights",
                where=f"cache: {manifest.space_id}; connector: {ours}",
                todo="encode again with the encoder that `cmcr connector info` shows",
            )
        raise ConnectorError(
            f"the connector has no head for the space {name!r} (id {manifest.space_id}); it has "
            + ", ".join(self.describe(known) for known in self.spaces),
            todo="use a cache of one of these spaces, or a connector fitted for this one",
        )

    def space_for(self, modality: str, space: str | None = None) -> str:
        """Name of the space that has a modality; ``space`` decides where several have it."""
        if space is not None:
            self.head(space)
            return space
        found = [name for name in self.spaces if modality in self.info.spaces[name].modalities]
        if len(found) == 1:
            return found[0]
        here = ", ".join(self.describe(name) for name in self.spaces)
        if not found:
            raise ConnectorError(f"no space of the connector has the modality {modality!r}; it has {here}")
        raise ConnectorError(
            f"{len(found)} spaces of the connector have the modality {modality!r}: {here}",
            todo="name one of them with --space (Python: space=...)",
        )

    @torch.inference_mode()
    def project(self, vectors: npt.ArrayLike | Tensor, space: str, *, batch_size: int = 8192) -> Vectors:
        """Vectors of a space to the shared space.

        Parameters
        ----------
        vectors : array or tensor (N, D_in) or (D_in,)
            Any real dtype; normalised in float32 first.
        space : str
            The space that they come from.
        batch_size : int
            Rows at once.

        Returns
        -------
        (N, D) float32, unit rows. A row that the head sends to zero stays zero.
        """
        head = self.head(space)
        rows = _as_matrix(vectors, head.spec.dim_in, space)
        out = np.empty((rows.shape[0], self.dim), np.float32)  # (N, D)
        for start in range(0, rows.shape[0], batch_size):
            batch = _unit_rows(rows[start : start + batch_size], start).to(self.device)  # (B, D_in)
            out[start : start + batch.shape[0]] = F.normalize(head(batch).float(), dim=1).cpu().numpy()
        return out

    def similarity(self, a: npt.ArrayLike | Tensor, b: npt.ArrayLike | Tensor, spaces: Sequence[str]) -> Vectors:
        """Cosines (N, M) float32 of vectors ``a`` (N, ·) of ``spaces[0]`` with ``b`` (M, ·) of ``spaces[1]``."""
        first, second = spaces
        return self.project(a, first) @ self.project(b, second).T  # (N, M)

    def embed(self, *, space: str | None = None, **inputs: Any) -> Vectors:
        """Raw inputs to the shared space: ``c.embed(audio="x.wav")``, ``c.embed(text=["a dog", "a cat"])``.

        Exactly one of ``text``, ``image``, ``audio`` and ``pointcloud`` (or ``points``), one input or a list of
        them: captions for text, else paths. The encoder is the one that the connector records for that modality.
        Returns (N, D) float32 unit rows.
        """
        if len(inputs) != 1:
            raise ConnectorError("embed takes exactly one of text=, image=, audio= and pointcloud=")
        (modality, given), *_ = inputs.items()
        modality = "pointcloud" if modality == "points" else modality
        name = self.space_for(modality, space)
        info = self.info.spaces[name]
        encoder = info.encoders.get(modality)
        if encoder is None:
            raise ConnectorError(
                f"the connector records no {modality} encoder for the space {name!r}; it records "
                + (", ".join(f"{m}: {e}" for m, e in sorted(info.encoders.items())) or "none"),
                todo="encode the inputs yourself and call project(vectors, space=...)",
            )
        encode = input_encoder()
        if encode is None:
            raise ConnectorError(
                "nothing that can encode raw inputs is registered", todo="import cmcr, or use project()"
            )
        several = list(given) if isinstance(given, list | tuple) else [given]
        vectors = encode(encoder, modality, several, space_id=info.id, device=str(self.device))
        return self.project(vectors, name)

    def save(self, folder: str | Path) -> Path:
        """Write ``connector.safetensors`` and ``config.json``, each atomically; same connector, same bytes."""
        return save(self.heads, self.info, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Connector:
        """Read a connector folder; raises :class:`ConnectorError` if anything is missing, damaged or too new."""
        heads, info = load(Path(folder))
        return cls(heads, info)

    @staticmethod
    def chain(first: Connector, second: Connector) -> Connector:
        """One connector from two that keep the same space as it is; see :func:`cmcr.trainer.chain.chain`."""
        from .chain import chain

        return chain(first, second)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def _as_matrix(vectors: npt.ArrayLike | Tensor, dim: int, space: str) -> Tensor:
    """Any array of vectors as a CPU tensor (N, D_in) of its own dtype, its dimension checked."""
    rows = vectors.detach() if isinstance(vectors, Tensor) else torch.from_numpy(np.ascontiguousarray(vectors))
    if rows.ndim == 1 and rows.shape[0]:
        rows = rows[None]  # (1, D_in)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ConnectorError(
            f"the space {space!r} has {dim} dimensions, these vectors have the shape {tuple(rows.shape)}",
            todo="check that the vectors come from this space",
        )
    return rows


def _unit_rows(rows: Tensor, start: int) -> Tensor:
    """Rows as unit float32; ``start`` is the number of the first one, for the message."""
    rows = rows.float()  # (B, D_in)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)  # (B, 1)
    bad = torch.nonzero(~(torch.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))[:, 0]
    if len(bad):
        raise ConnectorError(
            f"{len(bad)} of {rows.shape[0]} vectors are zero or not finite, the first is row {start + int(bad[0])}",
            todo="leave them out: they have no direction",
        )
    units: Tensor = rows / norms
    return units
