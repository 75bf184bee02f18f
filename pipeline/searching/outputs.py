"""A search's result as JSON lines or CSV, and as a page with pictures and sounds to play."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.errors import CmcrError
from ...cache.fsio import write_atomic
from ..report import data_uri, page
from ..tiles import tile_uri

if TYPE_CHECKING:
    from ..queries import Query
    from ..search import SearchResult

COLUMNS = ("query", "query_key", "rank", "key", "score", "caption", "source", "path")
FORMATS = ("table", "json", "jsonl", "csv")
TILE = 232
LARGEST_SOUND = 4 << 20  # bytes of a sound that the page carries; a longer one is linked
PLAYED = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}


def records(result: SearchResult) -> list[dict[str, Any]]:
    """One flat record a hit, in order."""
    return [
        {
            "query": query.label,
            "query_key": query.key,
            "rank": hit.rank,
            "key": hit.key,
            "score": round(hit.score, 6),
            "caption": hit.caption,
            "source": hit.source,
            "path": str(hit.path) if hit.path is not None else None,
        }
        for query, hits in zip(result.queries, result.hits, strict=True)
        for hit in hits
    ]


def json_lines(result: SearchResult) -> str:
    """One JSON object a hit."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records(result))


def csv_table(result: SearchResult) -> str:
    """A header and one line a hit (RFC 4180); what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(result))
    return text.getvalue()


def checked_format(name: str) -> str:
    """The name of a format that a result can be printed in.

    Raises
    ------
    CmcrError
        There is no such format.
    """
    if name not in FORMATS:
        raise CmcrError(f"A result is not printed as {name!r}.", todo=f"give one of {', '.join(FORMATS)}")
    return name


def printed(result: SearchResult, name: str) -> str:
    """The result as JSON lines (``jsonl``) or CSV."""
    return json_lines(result) if name == "jsonl" else csv_table(result)


def write_pictures(result: SearchResult, sheet: Path | None, page: Path | None) -> list[str]:
    """Draw the contact sheet and write the page where they are wanted; what was written, in lines."""
    from ..contact_sheet import contact_sheet

    lines = [f"contact sheet: {contact_sheet(result, sheet)}"] if sheet is not None else []
    return lines + ([f"page: {html_page(result, page)}"] if page is not None else [])


def html_page(result: SearchResult, path: str | Path, *, limit: int = 40) -> Path:
    """Write a page of the queries with their hits, pictures and sounds in it, atomically.

    Parameters
    ----------
    result : SearchResult
    path : path
        The .html to write; its folder exists.
    limit : int
        Queries shown; the page says how many were left out.

    Returns
    -------
    Path
        The file written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise CmcrError("The folder of the page does not exist.", where=str(path.parent), todo="make it first")
    if path.suffix.lower() not in (".html", ".htm"):  # another name is most likely that of another file
        raise CmcrError("The page is HTML and is named so.", where=str(path), todo=f"--page {path.stem}.html")
    write_atomic(path, render(result, limit).encode("utf-8"))
    return path


def render(result: SearchResult, limit: int = 40) -> str:
    """The page as one string."""
    shown = list(zip(result.queries, result.hits, strict=True))[:limit]
    blocks = [
        {
            "query": _item(query.modality, query.path, query.text, _label(query)),
            "hits": [
                {
                    **_item(result.modality, hit.path, hit.caption if result.modality == "text" else None, hit.key),
                    "rank": hit.rank,
                    "score": f"{hit.score:.3f}",
                    "caption": hit.caption or "",
                }
                for hit in hits
            ],
        }
        for query, hits in shown
    ]
    about = {
        "gallery": result.gallery.name,
        "rows": f"{result.gallery_rows:,}",
        "notes": result.notes,
        "left_out": len(result.queries) - len(shown),
    }
    words, sounds = result.modality == "text", result.modality == "audio"
    return page("search.html", about=about, blocks=blocks, words=words, sounds=sounds)


def _label(query: Query) -> str:
    return query.text or query.label if query.modality in ("mix", "vector") else query.caption or query.label


def _item(modality: str, path: Path | None, text: str | None, label: str) -> dict[str, str]:
    """What the page shows of one item: a picture as data URI or words, and a sound to play."""
    words = text or "" if modality in ("text", "mix", "vector") else ""
    return {
        "label": label,
        "words": words,
        "picture": "" if words else tile_uri(modality, path, TILE),
        "sound": _sound(path) if modality == "audio" and path is not None else "",
    }


def _sound(path: Path) -> str:
    """The sound as a data URI, or where it lies if it is long or of a type that has none; empty if it is gone."""
    kind = PLAYED.get(path.suffix.lower())
    try:
        if kind is None or path.stat().st_size > LARGEST_SOUND:
            return path.resolve().as_uri()
        return data_uri(path).replace("application/octet-stream", kind, 1)
    except OSError:
        return ""
