"""Text files: one caption a line, planned by byte ranges."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from cmcr.cache.errors import CorpusError
from cmcr.cache.ledger import Failure
from cmcr.cache.plan import Plan, Unit
from cmcr.pipeline.corpora import FileCorpus, open_corpus
from cmcr.pipeline.corpora.lines import LINE_LIMIT
from cmcr.pipeline.encoders.base import Item
from hypothesis import given, settings
from hypothesis import strategies as st


def read_all(corpus: FileCorpus, units: tuple[Unit, ...]) -> list[Item | Failure]:
    return [found for unit in units for found in corpus.read(unit)]


def as_plan(units: tuple[Unit, ...], generation: int = 0, size: int = 3) -> Plan:
    return Plan(generation, size, units)


def text_of(path: Path) -> FileCorpus:
    return open_corpus([path], "text")


def naive(data: bytes, stem: str) -> list[tuple[str, str | None]]:
    """Restatement: split at newlines, number from one, None for what is no caption."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    found: list[tuple[str, str | None]] = []
    for number, raw in enumerate(lines, 1):
        try:
            caption: str | None = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            caption = None
        good = caption is not None and bool(caption.strip()) and "\0" not in caption
        found.append((f"{stem}:{number:09d}", caption if good else None))
    return found


line = st.one_of(
    st.binary(max_size=8).map(lambda b: b.replace(b"\n", b"")),
    st.text(max_size=8).map(lambda s: s.encode("utf-8", "ignore").replace(b"\n", b"")),
    st.sampled_from([b"", b" ", b"\r", b"a dog\r", "çé\u2028x".encode()]),
)


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(line, max_size=20), end=st.sampled_from([b"", b"\n"]), bom=st.booleans(), size=st.integers(1, 7))
def test_units_read_back_what_a_naive_split_gives(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bytes, bom: bool, size: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "captions.en.txt"
    data = (b"\xef\xbb\xbf" if bom else b"") + b"\n".join(lines) + end
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:4] == b"\0\0\xfe\xff":
        return
    path.write_bytes(data)
    corpus = text_of(path)
    units = corpus.plan([], size).units
    if data == b"\xef\xbb\xbf":
        return
    expected = naive(data, "captions.en")
    found = [(f.key, f.data if isinstance(f, Item) else None) for f in read_all(corpus, units)]
    assert found == expected
    assert [unit.rows for unit in units] == [min(size, len(expected) - i) for i in range(0, len(expected), size)]
    assert [unit.shard for unit in units] == list(range(len(units)))


def test_a_plan_is_the_same_from_another_folder(tmp_path: Path) -> None:
    plans = []
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        path = tmp_path / folder / "captions.txt"
        path.write_text("one\ntwo\nthree\nfour\n")
        plans.append(text_of(path).plan([], 3).units)
    assert plans[0] == plans[1]


def test_small_files_share_a_unit(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("x\ny\n")
    units = open_corpus([tmp_path], "text").plan([], 4).units
    assert [[(p.source, p.rows, p.first) for p in unit.pieces] for unit in units] == [
        [("a.txt", 2, 1), ("b.txt", 2, 1)],
        [("c.txt", 2, 1)],
    ]


def test_appended_lines_alone_are_new(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("one\ntwo\nthree\nfour\n")
    corpus = text_of(path)
    first = corpus.plan([], 3).units
    with path.open("a") as handle:
        handle.write("five\n\nseven")
    update = corpus.plan([as_plan(first)], 3, first_shard=2)
    assert (update.known, update.changed, update.vanished) == (4, (), ())
    assert [unit.shard for unit in update.units] == [2]
    assert [f.key for f in read_all(corpus, update.units)] == ["c:000000005", "c:000000006", "c:000000007"]
    again = corpus.plan([as_plan(first), as_plan(update.units, 1)], 3, first_shard=3)
    assert (again.units, again.known) == ((), 7)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_newline_added_to_the_last_line_leaves_it_as_it_was(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "c.txt"
    path.write_text("one\ntwo", newline="")
    corpus = text_of(path)
    first = corpus.plan([], 10).units
    path.write_text(f"one\ntwo{ending}three\n", newline="")
    update = corpus.plan([as_plan(first)], 10, first_shard=1)
    assert (update.known, update.changed) == (2, ())
    assert [(f.key, f.data) for f in read_all(corpus, update.units)] == [("c:000000003", "three")]
    assert [f.data for f in read_all(corpus, first)] == ["one", "two"]


def test_a_last_line_that_grew_is_listed_and_what_follows_is_new(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("one\ntwo")
    corpus = text_of(path)
    first = corpus.plan([], 1).units
    path.write_text("one\ntwo and a half\nthree\n")
    update = corpus.plan([as_plan(first)], 10, first_shard=2)
    assert update.known == 1
    assert update.changed == ("c.txt line 2 (it has grown)",)
    assert [(f.key, f.data) for f in read_all(corpus, update.units)] == [("c:000000003", "three")]
    with pytest.raises(CorpusError, match="changed since it was planned"):
        list(corpus.read(first[1]))


def test_a_changed_line_is_listed_and_refused_while_reading(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("one\ntwo\nthree\n")
    corpus = text_of(path)
    units = corpus.plan([], 1).units
    path.write_text("one\nTWO\nthree\nfour\n")
    update = corpus.plan([as_plan(units)], 10, first_shard=3)
    assert update.changed == ("c.txt bytes 4-8",)
    assert [f.data for f in read_all(corpus, update.units)] == ["four"]
    assert [f.data for f in corpus.read(units[0])] == ["one"]
    with pytest.raises(CorpusError) as caught:
        list(corpus.read(units[1]))
    assert str(path) in str(caught.value)


def test_a_shortened_or_removed_file_is_refused_while_reading(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("one\ntwo\nthree\n")
    corpus = text_of(path)
    units = corpus.plan([], 10).units
    path.write_text("one\n")
    with pytest.raises(CorpusError):
        list(corpus.read(units[0]))
    path.unlink()
    with pytest.raises(CorpusError, match="cannot be opened"):
        list(corpus.read(units[0]))


def test_a_source_not_given_again_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("x\n")
    units = open_corpus([tmp_path], "text").plan([], 1).units
    corpus = text_of(tmp_path / "a.txt")
    assert corpus.plan([as_plan(units)], 1, first_shard=2).vanished == ("b.txt (not among the inputs given now)",)
    with pytest.raises(CorpusError, match=r"'b\.txt'"):
        list(corpus.read(units[1]))


def test_a_line_beyond_the_limit_is_a_failure_and_its_neighbours_are_not(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"one\n" + b"x" * (2 * LINE_LIMIT + 5) + b"\nthree\n")
    corpus = text_of(path)
    found = read_all(corpus, corpus.plan([], 10).units)
    assert [f.error if isinstance(f, Failure) else f.data for f in found] == ["one", "LineTooLong", "three"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_other_unicode_encodings_are_refused_by_name(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes("\ufeffone\ntwo\n".encode(encoding))
    with pytest.raises(CorpusError, match="UTF-16"):
        text_of(path).plan([], 10)


def test_a_million_lines_plan_fast_and_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    path.write_bytes(b"".join(b"a caption of a usual length, number %07d\n" % i for i in range(1_000_000)))
    corpus = text_of(path)
    started = time.perf_counter()
    units = corpus.plan([], 10_000).units
    took = time.perf_counter() - started
    tracemalloc.start()
    assert corpus.plan([], 10_000).units == units
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(units) == 100
    assert took < 5  # 0.2 s on an idle core
    assert peak < 24 << 20
    last = list(corpus.read(units[-1]))
    assert last[-1].key == "big:001000000"


@pytest.mark.kit
def test_kit_text_ends_as_its_manifest_expects(kit: Path) -> None:
    corpus = open_corpus([kit / "raw" / "bad" / "*.txt"], "text")
    update = corpus.plan([], 100)
    found = read_all(corpus, update.units)
    by_file: dict[str, list[str]] = {}
    for one in found:
        shown = one.error if isinstance(one, Failure) else str(one.data)
        by_file.setdefault(one.key.rpartition(":")[0], []).append(shown)
    assert by_file["non_utf8_line"][1] == "UnicodeDecodeError"
    assert len(by_file["non_utf8_line"]) == 3
    assert [shown == "BlankLine" for shown in by_file["empty_lines"]] == [False, True, True, False]
    assert by_file["no_final_newline_crlf_bom"] == ["A dog runs.", "A cat sleeps."]
    assert "zero_bytes" not in by_file
    assert update.remarks == ("zero_bytes.txt is empty: 0 captions",)
    assert len(found) == sum(unit.rows or 0 for unit in update.units)
