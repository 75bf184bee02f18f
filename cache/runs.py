"""The run records under runs/: the one place for times, hosts and absolute paths."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Run records of the cache folder ``path``, newest first. A line that was cut off by a kill is passed over."""
    for file in sorted((path / "runs").glob("*.jsonl"), reverse=True):
        for line in reversed(file.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def find_source(path: Path, source: str, known: Sequence[dict[str, Any]] | None = None) -> Path | None:
    """The file that ``source`` (a value of /source) names, under the ``roots`` of the run records.

    ``roots`` maps the name of an input to the absolute folder or file that it stood for. ``known`` are the
    :func:`records`, read once where many sources are looked for.
    """
    if Path(source).is_absolute() or ".." in Path(source).parts:
        return None
    for record in records(path) if known is None else known:
        roots = record.get("roots")
        for name, root in roots.items() if isinstance(roots, dict) else ():
            place = Path(str(root))
            tries = [place / source]
            if source == name or place.is_file():
                tries = [place] if source in (name, place.name) else []
            elif source.startswith(f"{name}/"):
                tries.append(place / source[len(name) + 1 :])
            for candidate in tries:
                if candidate.is_file():
                    return candidate
    return None
