"""What a connector says of itself: everything but its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SpaceInfo:
    """One space of a connector.

    Parameters
    ----------
    id : str
        Hash of the weights that the towers of the space share, or ``declared:<name>`` for imported vectors.
    modalities : tuple of str
        Modalities of the caches that the connector was fitted on.
    encoders : mapping of str to str
        Modality to encoder name, for raw inputs.
    fingerprints : mapping of str to str
        Modality to the fingerprint of that encoder.
    """

    id: str
    modalities: tuple[str, ...] = ()
    encoders: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ConnectorInfo:
    """Everything about a connector but its weights: JSON-able, without times, hosts and absolute paths.

    Parameters
    ----------
    spaces : mapping of str to SpaceInfo
        By space name; the same names as the heads.
    method : str
        The method that fitted it.
    made_from : mapping
        Recipe, content ids of the caches and seed.
    versions, licences : mapping of str to str
        Versions of the packages that matter; licence by encoder or corpus, "not stated" where unknown.
    """

    spaces: Mapping[str, SpaceInfo]
    method: str
    made_from: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)
