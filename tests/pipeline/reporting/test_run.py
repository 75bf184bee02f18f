"""The report page: its numbers are those of the files, its CSV says the same, and what is missing is said."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cmcr
import pytest
from cmcr.cache.errors import CmcrError
from cmcr.cli import app
from typer.testing import CliRunner


class Page(HTMLParser):
    """Texts of a page by the class of the element around them, tables by caption, and every address."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.names: dict[str, int] = {}
        self._caption: str | None = None
        self._cell: list[str] | None = None
        self._row: list[str] = []
        self._open = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names[tag] = self.names.get(tag, 0) + 1
        self.addresses += [given[name] or "" for name in ("src", "href") if name in given]
        if tag == "caption":
            self._open = True
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self._row.append(" ".join("".join(self._cell).split()))
            self._cell = None
        elif tag == "tr":
            if self._caption:
                self.tables[self._caption].append(self._row)
            self._row = []
        elif tag == "table":
            self._caption = None

    def handle_data(self, data: str) -> None:
        if self._open:
            self._caption, self._open = data.strip(), False
            self.tables[self._caption] = []
        if self._cell is not None:
            self._cell.append(data + " ")


def test_every_number_of_the_page_is_that_of_its_file(results: Any, tmp_path: Path) -> None:
    made = cmcr.report(results.folder, output=tmp_path / "out" / "page.html", pictures=False)
    assert (made.files, made.runs, made.ok, made.left_out) == (4, 4, True, ())
    page = Page(made.page)
    head, *rows = page.tables["sounds → pictures"]
    assert head[:4] == ["run", "R@1", "R@5", "R@10"]
    by_run = {row[0].split()[0]: row for row in rows}
    for name in ("one", "two"):
        record = json.loads((results.folder / f"{name}.json").read_text())["query_to_gallery"]
        for column, measure in enumerate(head[1:], 1):
            value = record[measure.replace(" ", "_")]
            if measure == "median rank":
                assert by_run[name][column] == f"{value:,.6g}"
                continue
            low, high = record["interval"][measure]
            assert by_run[name][column] == f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert by_run["chance"][1] == f"{100 / 24:.1f}"
    change = {row[1]: row for row in page.tables["Before, after and change"][1:]}
    figures = json.loads((results.folder / "damage" / "two.json").read_text())["figures"]
    value, low, high = (
        f"{100 * edge:+.1f}".replace("+0.0", "0.0") for edge in (figures["change"], *figures["interval"])
    )
    assert change["damage/two"][4] == f"{value} [{low}, {high}]"


def test_the_csv_gives_every_figure_back_unrounded(results: Any, tmp_path: Path) -> None:
    made = cmcr.report([results.folder], output=tmp_path / "page.html", pictures=False)
    rows = list(csv.DictReader(made.csv.open(encoding="utf-8", newline="")))
    assert made.csv == tmp_path / "page.csv"
    for name in ("one", "two"):
        record = json.loads((results.folder / f"{name}.json").read_text())
        for direction, side in (("query to gallery", "query_to_gallery"), ("gallery to query", "gallery_to_query")):
            mine = {row["measure"]: row for row in rows if (row["run"], row["direction"]) == (name, direction)}
            floats = {measure: v for measure, v in record[side].items() if isinstance(v, float)}
            assert {measure: float(row["value"]) for measure, row in mine.items()} == floats
            intervals = {m: [float(row["low"]), float(row["high"])] for m, row in mine.items() if row["low"]}
            assert intervals == record[side]["interval"]
            assert mine["R@1"]["query_content"] == record["query"]["content"]
            assert mine["R@1"]["connector"] == record["connector"]["fingerprint"]
    assert {row["protocol"] for row in rows} == {"retrieval", "damage"}


def test_pictures_and_sounds_are_in_the_page_and_nothing_else_is_loaded(results: Any, tmp_path: Path) -> None:
    made = cmcr.report(results.folder, output=tmp_path / "p.html", material=results.world, examples=3)
    assert made.notes == ()
    page = Page(made.page)
    outside = [one for one in page.addresses if not one.startswith(("data:", "#"))]
    assert outside == []
    assert page.names["audio"] == 3
    assert page.names["img"] == 3 + 3 * 2 * 5  # a query's sound, and five pictures for each of two runs
    assert page.names["svg"] == 4  # two spaces of unlike width before, two runs after
    text = made.page.read_text(encoding="utf-8")
    assert "sound &lt;0&gt; &amp; more" in text
    assert "<0>" not in text
    assert "script" not in page.names
    again = cmcr.report(results.folder, output=tmp_path / "p.html", material=results.world, examples=3)
    assert again.page.read_text(encoding="utf-8") == text


def test_missing_caches_connectors_and_media_are_said(results: Any, tmp_path: Path) -> None:
    bare = cmcr.report(results.folder, output=tmp_path / "bare.html")
    assert "'sounds' is not below the folders given" in bare.notes[0]
    assert "No pictures" in bare.page.read_text(encoding="utf-8")
    shutil.rmtree(results.world / "media")
    shutil.rmtree(results.world / "c-two")
    made = cmcr.report(results.folder, output=tmp_path / "p.html", material=results.world)
    page = Page(made.page)
    assert "img" not in page.names
    assert "audio" not in page.names
    assert "item-0" in made.page.read_text(encoding="utf-8")  # words in place of pictures
    assert any("connectors or caches" in note and "two" in note for note in made.notes)
    (results.world / "pictures" / "cache.json").write_text("{")  # not even a cache any more
    assert cmcr.report(results.folder, output=tmp_path / "p.html", material=results.world).ok


def test_one_run_alone_is_a_page_too(results: Any, tmp_path: Path) -> None:
    made = cmcr.report(results.folder / "one.json", output=tmp_path / "one.html")
    text = made.page.read_text(encoding="utf-8")
    assert "<h1>one on sounds → pictures</h1>" in text
    assert 'class="best"' not in text  # nothing to be better than
    assert "one: R@1" in text


def test_names_with_html_in_them_are_text(results: Any, tmp_path: Path) -> None:
    odd = '<b onclick="x">&'
    (results.folder / "one.json").rename(results.folder / f"{odd}.json")
    (results.folder / "half<.json").write_text("{")
    made = cmcr.report(results.folder, output=tmp_path / "p.html", pictures=False)
    text = made.page.read_text(encoding="utf-8")
    assert "<b onclick" not in text
    assert "&lt;b onclick=&#34;x&#34;&gt;&amp;" in text
    assert "half&lt;.json" in text


def test_sets_of_one_name_and_unlike_content_are_two_sections_that_say_so(results: Any, tmp_path: Path) -> None:
    record = json.loads((results.folder / "two.json").read_text())
    record["gallery"]["content"] = "0" * 32
    (results.folder / "two.json").write_text(json.dumps(record))
    made = cmcr.report(results.folder, output=tmp_path / "p.html", pictures=False)
    text = made.page.read_text(encoding="utf-8")
    assert "differ in: content of gallery" in text
    assert len(re.findall(r"<h2 id=.set-", text)) == 2


def test_the_command_counts_what_it_could_not_read(results: Any) -> None:
    (results.folder / "notes.json").write_text("{}")
    words = ["report", str(results.folder), "--no-pictures"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "4 result files, 4 runs, 3 tables" in result.output
    assert "passed over: notes.json: no result of an evaluation" in result.output
    assert (results.folder / "report.html").exists()
    (results.folder / "half.json").write_text("{")
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert [(one["file"], one["broken"]) for one in record["left_out"]] == [("half.json", True), ("notes.json", False)]
    assert "1 file could not be read" in (results.folder / "report.html").read_text(encoding="utf-8")


def test_an_empty_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CmcrError, match="No result of an evaluation") as caught:
        cmcr.report(tmp_path)
    assert "--output" in str(caught.value)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(CmcrError, match="no such folder"):
        cmcr.report(tmp_path, material=tmp_path / "gone")


@pytest.mark.parametrize("name", ["figures.csv", "one.json", "page", "page.pdf"])
def test_a_page_that_is_named_like_no_page_is_refused_before_anything_is_written(results: Any, name: str) -> None:
    before = {path: path.read_bytes() for path in results.folder.rglob("*") if path.is_file()}
    with pytest.raises(CmcrError, match=r"The page is HTML") as caught:
        cmcr.report(results.folder, output=results.folder / name)
    assert name in str(caught.value)
    assert f"--output {Path(name).stem}.html" in str(caught.value)
    assert {path: path.read_bytes() for path in results.folder.rglob("*") if path.is_file()} == before


def test_a_page_may_end_in_htm_or_capitals(results: Any, tmp_path: Path) -> None:
    for name in ("a.htm", "b.HTML"):
        assert cmcr.report(results.folder, output=tmp_path / name, pictures=False).page.read_bytes()[:9] == b"<!doctype"


@pytest.mark.parametrize("pictures", [True, False])
def test_a_negative_number_of_examples_is_a_clear_error(results: Any, pictures: bool) -> None:
    with pytest.raises(CmcrError, match="-1 queries") as caught:
        cmcr.report(results.folder, material=results.world, examples=-1, pictures=pictures)
    assert "--examples" in str(caught.value)
    assert not (results.folder / "report.html").exists()


def browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# The page in a frame of a phone's width writes down how wide it would like to be.
PHONE = """<!doctype html><iframe id="f" src="p.html" style="width:390px;height:800px;border:0"></iframe>
<script>document.getElementById("f").onload = (e) => {
  const d = e.target.contentDocument.documentElement;
  document.title = "wide " + d.scrollWidth + " of " + d.clientWidth;
  document.body.append(document.title);
};</script>"""


@pytest.mark.skipif(browser() is None or sys.platform == "darwin", reason="no chromium on the path")
def test_a_phone_needs_no_sideways_scrolling(results: Any, tmp_path: Path) -> None:
    long = "a-name-that-has-no-place-to-break-and-goes-on-for-longer-than-a-phone-is-wide"
    (results.folder / "one.json").rename(results.folder / f"{long}.json")
    cmcr.report(results.folder, output=tmp_path / "p.html", material=results.world, examples=2)
    (tmp_path / "phone.html").write_text(PHONE)
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [*command, (tmp_path / "phone.html").as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    found = re.search(r"wide (\d+) of (\d+)", done.stdout)
    assert found, done.stdout[-300:] + done.stderr[-300:]
    assert int(found[2]) == 390
    assert int(found[1]) <= 390
