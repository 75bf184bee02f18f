"""A contact sheet: each query with its hits as one picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache.errors import CmcrError
from .tiles import EDGE, INK, MUTED, font, font_for, item_tile, wrap

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from .queries import Query
    from .search import SearchResult
    from .searcher import Hit

TILE, GAP, PAD = 196, 20, 28
LABEL = 62  # height of the lines under a tile
HEAD, FOOT = 58, 40
QUERY_GAP = 44  # between the query and its hits


def contact_sheet(result: SearchResult, path: str | Path, *, columns: int = 5, limit: int = 40) -> Path:
    """Draw the queries of a result, each with its hits beside it, and write a PNG atomically.

    Parameters
    ----------
    result : SearchResult
        What :func:`search` returned.
    path : path
        The PNG to write.
    columns : int
        Hits beside each other; more go to the next line.
    limit : int
        Queries drawn; the foot of the sheet says how many were left out.

    Returns
    -------
    Path
        The file written.
    """
    path = Path(path)
    if columns < 1 or limit < 1:
        raise CmcrError("A contact sheet has at least one column and one query.", todo="give positive numbers")
    if not path.parent.is_dir():
        raise CmcrError("The folder of the contact sheet does not exist.", where=str(path.parent), todo="make it first")
    if path.suffix.lower() != ".png":  # another name is most likely that of another file
        raise CmcrError("The contact sheet is a PNG and is named so.", where=str(path), todo=f"--sheet {path.stem}.png")
    sheet = draw_sheet(result, columns=columns, limit=limit)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    sheet.save(partial, format="PNG", optimize=True)
    partial.replace(path)
    return path


def draw_sheet(result: SearchResult, *, columns: int = 5, limit: int = 40) -> Image:
    """The sheet as a Pillow image, dark text on white."""
    from PIL import Image, ImageDraw

    shown = list(zip(result.queries, result.hits, strict=True))[:limit]
    widest = max((len(hits) for _, hits in shown), default=0)
    columns = max(1, min(columns, widest))
    left = PAD + TILE + QUERY_GAP
    width = max(left + columns * (TILE + GAP) - GAP + PAD, 560)
    heights = [max(1, -(-len(hits) // columns)) * (TILE + LABEL + GAP) for _, hits in shown]
    sheet = Image.new("RGB", (width, HEAD + sum(heights) + len(shown) * GAP + FOOT), "white")
    pen = ImageDraw.Draw(sheet)
    _headline(pen, result, width)
    top = HEAD + GAP
    for n, ((query, hits), height) in enumerate(zip(shown, heights, strict=True)):
        if n:
            pen.line((PAD, top - GAP, width - PAD, top - GAP), fill=EDGE)
        _query(sheet, pen, query, top)
        for place, hit in enumerate(hits):
            x = left + place % columns * (TILE + GAP)
            y = top + place // columns * (TILE + LABEL + GAP)
            _hit(sheet, pen, hit, result.modality, (x, y))
        top += height + GAP
    _footline(pen, result, len(shown), sheet.size)
    return sheet


def _headline(pen: ImageDraw, result: SearchResult, width: int) -> None:
    pen.text((PAD, 20), "Query", font=font(17), fill=INK)
    title = f"Nearest of {result.gallery_rows:,} in {result.gallery.name}"
    pen.text((PAD + TILE + QUERY_GAP, 20), title, font=font_for(title, 17), fill=INK)
    pen.line((PAD, HEAD - 8, width - PAD, HEAD - 8), fill=EDGE)


def _footline(pen: ImageDraw, result: SearchResult, shown: int, size: tuple[int, int]) -> None:
    note = "cosine in the shared space"
    if shown < len(result.queries):
        note = f"first {shown} of {len(result.queries):,} queries  ·  {note}"
    pen.text((PAD, size[1] - FOOT + 4), note, font=font(13), fill=MUTED)


def _query(sheet: Image, pen: ImageDraw, query: Query, top: int) -> None:
    sheet.paste(item_tile(query.modality, query.path, query.text, TILE), (PAD, top))
    pen.rectangle((PAD - 2, top - 2, PAD + TILE + 1, top + TILE + 1), outline=INK, width=2)
    if query.modality not in ("text", "mix", "vector"):  # their tiles say it all
        _lines(pen, query.caption or query.label, (PAD, top + TILE + 8), 3)


def _hit(sheet: Image, pen: ImageDraw, hit: Hit, modality: str, at: tuple[int, int]) -> None:
    x, y = at
    sheet.paste(item_tile(modality, hit.path, hit.caption if modality == "text" else None, TILE), at)
    pen.text((x, y + TILE + 7), str(hit.rank), font=font(15), fill=INK)
    score = f"{hit.score:.3f}"
    face = font(15)
    pen.text((x + TILE - pen.textlength(score, font=face), y + TILE + 7), score, font=face, fill=MUTED)
    label = hit.key if modality == "text" else hit.caption or hit.key
    _lines(pen, label, (x, y + TILE + 27), 2)


def _lines(pen: ImageDraw, text: str, at: tuple[int, int], lines: int) -> None:
    face = font_for(text, 13)
    for n, line in enumerate(wrap(pen, text, face, TILE, lines)):
        pen.text((at[0], at[1] + 17 * n), line, font=face, fill=INK if n == 0 else MUTED)
