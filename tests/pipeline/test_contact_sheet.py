"""Contact sheets: every kind of item gets a tile, what is missing says so, and the picture is the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from cmcr.cache.errors import CmcrError
from cmcr.pipeline.contact_sheet import GAP, HEAD, PAD, QUERY_GAP, TILE, contact_sheet, draw_sheet
from cmcr.pipeline.queries import Query
from cmcr.pipeline.search import SearchResult
from cmcr.pipeline.searcher import Hit
from cmcr.pipeline.tiles import blank, cloud_tile, item_tile, wave_tile, words_tile, wrap
from PIL import Image, ImageChops


def hits(count: int, path: Path | None = None, caption: str | None = None) -> tuple[Hit, ...]:
    return tuple(Hit(n + 1, f"key/{n}", 0.9 - n / 100, caption, None, path, n) for n in range(count))


def result(queries: int, count: int, modality: str = "image", path: Path | None = None) -> SearchResult:
    asked = tuple(Query(f"query {n}", "text", text=f"query {n}") for n in range(queries))
    return SearchResult(asked, tuple(hits(count, path) for _ in asked), Path("gallery"), 100, modality)


def same(left: Image.Image, right: Image.Image) -> bool:
    return left.size == right.size and ImageChops.difference(left, right).getbbox() is None


def test_the_picture_of_a_hit_stands_in_its_tile(tmp_path: Path) -> None:
    Image.new("RGB", (80, 80), (200, 30, 30)).save(tmp_path / "red.png")
    sheet = draw_sheet(result(1, 3, path=tmp_path / "red.png"))
    for place in range(3):
        x = PAD + TILE + QUERY_GAP + place * (TILE + GAP) + TILE // 2
        assert sheet.getpixel((x, HEAD + GAP + TILE // 2)) == (200, 30, 30)
    assert sheet.getpixel((2, 2)) == (255, 255, 255)


def test_the_same_result_gives_the_same_bytes_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"an older file")
    assert contact_sheet(result(2, 7), path) == path
    first = path.read_bytes()
    contact_sheet(result(2, 7), path)
    assert path.read_bytes() == first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["sheet.png"]
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"


def test_more_hits_than_columns_go_to_the_next_line() -> None:
    one, two = draw_sheet(result(1, 5), columns=5), draw_sheet(result(1, 6), columns=5)
    assert one.width == two.width
    assert two.height > one.height + TILE


def test_queries_beyond_the_limit_are_left_out_and_the_foot_says_so() -> None:
    few, many = draw_sheet(result(3, 2), limit=3), draw_sheet(result(9, 2), limit=3)
    assert few.size == many.size
    foot = (0, few.height - 40, few.width, few.height)
    assert not same(few.crop(foot), many.crop(foot))


def test_every_modality_has_a_tile_of_its_own(tmp_path: Path) -> None:
    Image.new("RGB", (9, 30), (10, 200, 10)).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) / 9).astype(np.float32), 8000)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32))
    tiles = [
        item_tile("text", None, "a dog", TILE),
        item_tile("image", tmp_path / "a.png", None, TILE),
        item_tile("audio", tmp_path / "a.wav", None, TILE),
        item_tile("pointcloud", tmp_path / "a.npy", None, TILE),
    ]
    empty, _ = blank(TILE)
    for n, tile in enumerate(tiles):
        assert tile.size == (TILE, TILE)
        assert not any(same(tile, other) for other in [empty, *tiles[:n]])


def test_what_cannot_be_shown_gets_a_neutral_tile_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    missing = item_tile("image", tmp_path / "gone.png", None, TILE)
    assert same(missing, words_tile("image not found", TILE, muted=True))
    assert same(item_tile("audio", None, None, TILE), words_tile("sound not at hand", TILE, muted=True))
    assert same(item_tile("text", None, None, TILE), words_tile("no text stored", TILE, muted=True))
    broken = item_tile("image", tmp_path / "broken.png", None, TILE)
    assert same(broken, words_tile("image cannot be read", TILE, muted=True))


def test_silent_short_and_degenerate_items_are_drawn() -> None:
    assert wave_tile(np.zeros(100, np.float32), 8000, TILE).size == (TILE, TILE)
    assert wave_tile(np.ones(3, np.float32), 8000, TILE).size == (TILE, TILE)
    assert cloud_tile(np.zeros((1, 3), np.float32), TILE).size == (TILE, TILE)
    assert cloud_tile(np.ones((9000, 6), np.float32), TILE).size == (TILE, TILE)


@pytest.mark.parametrize("text", ["", "word", "x" * 500, "a b " * 300, "folder/some_long-file.name" * 4, "собака 犬"])
def test_wrapped_lines_fit_and_only_a_cut_text_ends_in_an_ellipsis(text: str) -> None:
    from cmcr.pipeline.tiles import font_for

    _, pen = blank(TILE)
    face = font_for(text, 14)
    lines = wrap(pen, text, face, 120, 3)
    assert len(lines) <= 3
    assert all(pen.textlength(line, font=face) <= 120 for line in lines)
    shown = "".join("".join(lines).split())
    whole = "".join(text.split())
    assert shown == whole or (shown.endswith("…") and whole.startswith(shown[:-1]))


def test_a_result_without_hits_is_still_a_sheet() -> None:
    assert draw_sheet(result(1, 0)).height > TILE


def test_a_missing_folder_and_bad_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CmcrError, match="folder of the contact sheet"):
        contact_sheet(result(1, 1), tmp_path / "nowhere" / "sheet.png")
    with pytest.raises(CmcrError, match="at least one column"):
        contact_sheet(result(1, 1), tmp_path / "sheet.png", columns=0)
