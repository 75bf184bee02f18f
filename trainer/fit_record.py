"""What decides a fit, as its connector records it: settings and the content of caches, without a place or a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..cache._version import __version__
from ..cache.manifest import CacheManifest
from ..cache.plugins import recorded_name
from ..cache.reader import open_cache
from .connector_info import ConnectorInfo, SpaceInfo
from .methods.base import Method
from .pairs import Pairs
from .recipe import Recipe
from .recipe_tables import ValidationRecipe
from .settings import DECIDES_NOTHING

NOT_STATED = "not stated"
_NO_ENCODER = "imported"  # what an import records where nobody says which encoder made the vectors


def settings_record(recipe: Recipe, method: Method) -> dict[str, Any]:
    """The settings that decide a fit, without places; a method from a file by its name and the hash of the file."""
    record = recipe.fit.model_dump(mode="json", exclude=set(DECIDES_NOTHING), exclude_none=True)
    record["method"] = recorded_name(recipe.fit.method)
    if recipe.validation is not None:
        record["validation"] = _validation(recipe, recipe.validation)
    source = getattr(method, "source_hash", None)
    return record if source is None else {**record, "method_source": source}


def _validation(recipe: Recipe, plan: ValidationRecipe) -> dict[str, Any]:
    """What a validation pair holds: content ids, the hash of a file of pairs."""
    record: dict[str, Any] = {
        "query": open_cache(recipe.path(plan.query)).content_id(),
        "gallery": open_cache(recipe.path(plan.gallery)).content_id(),
    }
    if plan.pairs is not None:
        record["pairs"] = hashlib.blake2b(recipe.path(plan.pairs).read_bytes(), digest_size=16).hexdigest()
    return record if plan.label is None else {**record, "label": plan.label}


def fit_digest(settings: Mapping[str, Any], pairs: Pairs) -> str:
    """Digest of everything that decides a fit: settings, the content of the caches, this version of the package."""
    record = {"version": __version__, "fit": settings, "made_from": _contents(pairs)}
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _contents(pairs: Pairs) -> dict[str, Any]:
    """Content ids of the caches, by space."""
    banks = {name: None if bank is None else bank.content_id() for name, bank in pairs.bank.items()}
    return {
        name: {"overlap": pairs.overlap[name].cache.content_id(), "bank": banks[name]} for name in sorted(pairs.names)
    }


def connector_info(settings: Mapping[str, Any], pairs: Pairs, found: Mapping[str, Any]) -> ConnectorInfo:
    """The description that travels with the connector: no paths, no times. ``found`` is what the fit itself adds."""
    spaces = {name: _space_info(_manifests(pairs, name)) for name in pairs.names}
    made_from: dict[str, Any] = {
        "caches": _contents(pairs),
        "settings": dict(settings),
        "rows": pairs.N,
        "join": {
            "matched": pairs.report.matched,
            "left_only": pairs.report.left_only,
            "right_only": pairs.report.right_only,
        },
        "bank_rows": {name: len(bank) for name, bank in pairs.bank.items() if bank is not None},
        "neighbours": {name: round(done.neighbours, 2) for name, done in pairs.completions.items()},
        **{name: value for name, value in found.items() if value},
    }
    encoders = {encoder for space in spaces.values() for encoder in space.encoders.values()}
    return ConnectorInfo(
        spaces=spaces,
        method=settings["method"],
        made_from=made_from,
        versions={"cmcr": __version__, "numpy": np.__version__, "torch": torch.__version__},
        licences=dict.fromkeys(sorted(encoders), NOT_STATED),
    )


def _manifests(pairs: Pairs, name: str) -> list[CacheManifest]:
    """Manifests of a space's caches, the overlap first."""
    bank = pairs.bank[name]
    return [pairs.overlap[name].cache.manifest, *(cache.manifest for cache in (bank.caches if bank else ()))]


def _space_info(manifests: list[CacheManifest]) -> SpaceInfo:
    """One space from the caches that stand for it; the first cache of a modality names its encoder."""
    first = {manifest.modality: manifest for manifest in reversed(manifests)}
    modalities = tuple(sorted(first))
    return SpaceInfo(
        id=manifests[0].space_id,
        modalities=modalities,
        encoders={name: first[name].encoder for name in modalities if first[name].encoder != _NO_ENCODER},
        fingerprints={modality: first[modality].fingerprint for modality in modalities},
    )
