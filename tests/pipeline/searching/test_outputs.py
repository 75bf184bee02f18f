"""JSON lines, CSV and the page: every hit once, escaped, with sounds to play."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cmcr.cache.errors import CmcrError
from cmcr.pipeline.queries import Query
from cmcr.pipeline.search import SearchResult
from cmcr.pipeline.searcher import Hit
from cmcr.pipeline.searching import outputs


def result(modality: str = "audio", path: Path | None = None) -> SearchResult:
    asked = (Query("at <night>", "text", text="at <night>"), Query("a, b", "mix", text='a, "b"'))
    hits = tuple(Hit(n + 1, f"k,{n}", 0.5 - n / 10, 'say "hi"\nto <b>' if n else None, None, path, n) for n in range(3))
    return SearchResult(asked, (hits, hits[:1]), Path("gallery"), 9, modality, ("a note",))


def test_json_lines_and_csv_hold_one_record_a_hit() -> None:
    lines = [json.loads(line) for line in outputs.json_lines(result()).splitlines()]
    table = list(csv.DictReader(io.StringIO(outputs.csv_table(result()), newline="")))
    assert [(line["query"], line["rank"], line["key"]) for line in lines] == [
        ("at <night>", 1, "k,0"), ("at <night>", 2, "k,1"), ("at <night>", 3, "k,2"), ("a, b", 1, "k,0"),
    ]  # fmt: skip
    assert [row["key"] for row in table] == [line["key"] for line in lines]
    assert table[1]["caption"] == 'say "hi"\nto <b>'
    assert (table[0]["caption"], table[0]["score"]) == ("", "0.5")


def test_the_page_carries_sounds_and_escapes_texts(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "rain.wav", np.zeros(800, np.float32), 8000)
    outputs.html_page(result(path=tmp_path / "rain.wav"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<audio controls") == 4
    assert page.count("data:audio/wav;base64,") == 4
    assert "at &lt;night&gt;" in page
    assert "<b>" not in page
    assert "a note" in page


def test_a_long_sound_is_linked_and_a_missing_one_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "rain.wav", np.zeros(800, np.float32), 8000)
    monkeypatch.setattr(outputs, "LARGEST_SOUND", 100)
    assert (tmp_path / "rain.wav").as_uri() in outputs.render(result(path=tmp_path / "rain.wav"))
    assert "<audio" not in outputs.render(result(path=tmp_path / "gone.wav"))
    assert "1 more queries" in outputs.render(result("text"), limit=1)
    with pytest.raises(CmcrError, match="folder of the page"):
        outputs.html_page(result(), tmp_path / "no" / "page.html")


def test_a_page_or_a_sheet_named_like_another_file_is_refused_and_the_file_left(tmp_path: Path) -> None:
    kept = tmp_path / "vectors.npy"
    kept.write_bytes(b"precious")
    for given, named in (
        ({"sheet": None, "page": kept}, "vectors.html"),
        ({"sheet": kept, "page": None}, "vectors.png"),
    ):
        with pytest.raises(CmcrError, match="is named so") as error:
            outputs.write_pictures(result(), **given)
        assert named in str(error.value)
        assert kept.read_bytes() == b"precious"
