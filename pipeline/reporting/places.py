"""Where the caches, connectors and pairs of result files lie: found by content, never by name or path."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ...cache.errors import CmcrError
from ...cache.manifest import MANIFEST_NAME
from ...cache.reader import Cache, open_cache
from ...trainer.connector import Connector
from ...trainer.run_folder import CONFIG
from ..evaluation.results import digest_of_file
from ..shared import connector_fingerprint

_LARGEST_PAIRS = 256 << 20  # bytes of a .csv that is hashed


class Places:
    """Caches by content id, connectors by fingerprint and files of pairs by digest, below some folders.

    What cannot be opened is passed over: here it would only have given pictures. Nothing is opened twice.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._caches: dict[str, Cache] = {}
        self._connectors: dict[str, Connector] = {}
        self._tables: list[Path] = []
        self._digests: dict[Path, str] = {}
        seen: set[Path] = set()
        for root in folders:
            for place, below, files in os.walk(root):
                below[:] = sorted(name for name in below if not name.startswith("."))
                here = Path(place)
                if here.resolve() in seen:
                    below.clear()
                    continue
                seen.add(here.resolve())
                if MANIFEST_NAME in files:
                    below.clear()
                    self._keep_cache(here)
                elif CONFIG in files and "connector.safetensors" in files:
                    below.clear()
                    self._keep_connector(here)
                self._tables += [here / name for name in sorted(files) if name.endswith(".csv")]

    def _keep_cache(self, place: Path) -> None:
        try:
            cache = open_cache(place)
            self._caches.setdefault(cache.content_id(), cache)
        except (CmcrError, OSError):
            return

    def _keep_connector(self, place: Path) -> None:
        try:
            connector = Connector.load(place)
            self._connectors.setdefault(connector_fingerprint(connector), connector)
        except (CmcrError, OSError):
            return

    def cache(self, content: str | None) -> Cache | None:
        """The cache of that content, if it is there and has rows."""
        found = self._caches.get(content or "")
        return found if found is not None and len(found) else None

    def connector(self, fingerprint: str) -> Connector | None:
        """The connector of that fingerprint, if it is there."""
        return self._connectors.get(fingerprint)

    def pairs(self, digest: str) -> Path | None:
        """The CSV of that content, if it is there."""
        for path in self._tables:
            if path not in self._digests:
                try:
                    small = path.stat().st_size <= _LARGEST_PAIRS
                    self._digests[path] = digest_of_file(path) if small else ""
                except (CmcrError, OSError):
                    self._digests[path] = ""
            if self._digests[path] == digest:
                return path
        return None
