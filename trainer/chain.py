"""Chaining: connectors that keep the same space become one, so that their other spaces meet there too.

Ex-MCR (arXiv 2310.08884) leads CLAP and ULIP into an untouched CLIP, each by a head of its own; sounds and shapes can
then be compared although nothing ever joined them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

from ..cache.errors import ConnectorError
from .connector import DECLARED, Connector
from .connector_info import ConnectorInfo, SpaceInfo
from .projectors import Projector

METHOD = "chain"


def chain(first: Connector, second: Connector) -> Connector:
    """One connector with the heads of both, and once the space that both keep as it is.

    Parameters
    ----------
    first, second : Connector
        Each with an identity head for the space that they share: the same id, or the same name where an id is only
        declared. Chains can be chained again.

    Returns
    -------
    Connector
        The shared space under the name that ``first`` gives it.

    Raises
    ------
    ConnectorError
        No space is kept by both, their shared spaces differ in width, or another name stands for two spaces.
    """
    shared = _shared(first, second)
    heads: dict[str, Projector] = dict(first.heads)
    infos: dict[str, SpaceInfo] = dict(first.info.spaces)
    for theirs, ours in shared.items():
        infos[ours] = _merged(first.info.spaces[ours], second.info.spaces[theirs])
    for name, head in second.heads.items():
        if name in shared:
            continue
        if name in heads:
            raise ConnectorError(
                f"both connectors have a space {name!r} that they do not both keep: a chain would have two of them",
                where=f"{first.describe(name)}; {second.describe(name)}",
                todo="chain connectors that bring different spaces into the one that both keep",
            )
        heads[name], infos[name] = head, second.info.spaces[name]
    info = ConnectorInfo(
        spaces=infos,
        method=METHOD,
        made_from={"chain": [_record(first), _record(second)]},
        versions=_joined(first.info.versions, second.info.versions),
        licences=_joined(first.info.licences, second.info.licences),
    )
    return Connector(heads, info)


def chain_folders(folders: Sequence[str | Path]) -> Connector:
    """The chain of two or more connector folders, in their order."""
    if len(folders) < 2:
        raise ConnectorError("a chain takes two connectors or more", todo="name the folders one after the other")
    return reduce(chain, [Connector.load(folder) for folder in folders])


def _shared(first: Connector, second: Connector) -> dict[str, str]:
    """Names in ``second`` to names in ``first`` of the spaces that both keep."""
    shared = {
        theirs: ours
        for theirs in second.kept
        for ours in first.kept
        if _same_space(ours, first.info.spaces[ours], theirs, second.info.spaces[theirs])
    }
    if not shared:
        raise ConnectorError(
            "the two connectors keep no space in common",
            where=f"{_kept(first)}; {_kept(second)}",
            todo="chain connectors whose heads for one and the same space are the identity, as those of ex-mcr are, "
            'or of a fit with keep = "NAME"',
        )
    if first.dim != second.dim:
        raise ConnectorError(
            f"the two connectors lead into spaces of {first.dim} and of {second.dim} dimensions",
            todo="chain connectors into the same encoder's space",
        )
    return shared


def _same_space(ours: str, mine: SpaceInfo, theirs: str, other: SpaceInfo) -> bool:
    """The same id; or the same name where one of the ids says no more than the name (as for caches)."""
    if mine.id == other.id and not mine.id.startswith(DECLARED):
        return bool(mine.id) or ours == theirs
    return ours == theirs and any(not one.id or one.id.startswith(DECLARED) for one in (mine, other))


def _kept(connector: Connector) -> str:
    spaces = ", ".join(f"{name} (id {connector.info.spaces[name].id or 'not recorded'})" for name in connector.kept)
    return f"{' + '.join(connector.spaces)} keeps {spaces or 'none: no head is the identity'}"


def _merged(mine: SpaceInfo, other: SpaceInfo) -> SpaceInfo:
    """One description of a space from two: an id from weights before a declared one, the first encoder named."""
    known = next((one.id for one in (mine, other) if one.id and not one.id.startswith(DECLARED)), mine.id or other.id)
    return SpaceInfo(
        id=known,
        modalities=tuple(sorted({*mine.modalities, *other.modalities})),
        encoders={**other.encoders, **mine.encoders},
        fingerprints={**other.fingerprints, **mine.fingerprints},
    )


def _record(connector: Connector) -> dict[str, Any]:
    """What a part of the chain was: its spaces, its method, what it was made from."""
    return {
        "spaces": {name: asdict(connector.info.spaces[name]) for name in connector.spaces},
        "method": connector.info.method,
        "made_from": dict(connector.info.made_from),
    }


def _joined(mine: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """Both mappings; where they differ, both values."""
    return {
        name: " / ".join(dict.fromkeys(one[name] for one in (mine, other) if name in one)) for name in {**mine, **other}
    }
