"""JSONL, CSV, TSV and parquet: keys, captions, paths, and rows that come later."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.errors import CorpusError, DuplicateKeyError
from cmcr.cache.ledger import Failure
from cmcr.cache.plan import Plan, Unit
from cmcr.pipeline.corpora import CorpusSettings, FileCorpus, open_corpus
from cmcr.pipeline.encoders.base import Item, Modality
from hypothesis import given, settings
from hypothesis import strategies as st


def read_all(corpus: FileCorpus, units: tuple[Unit, ...]) -> list[Item | Failure]:
    return [found for unit in units for found in corpus.read(unit)]


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_csv(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(records)
    return path


def write_parquet(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=3)
    return path


Write = Callable[[Path, Sequence[dict[str, Any]]], Path]
FORMATS: list[tuple[str, Write]] = [
    ("t.jsonl", write_jsonl),
    ("t.csv", write_csv),
    ("t.tsv", write_csv),
    ("t.parquet", write_parquet),
]


def known(keys: set[str]) -> Callable[[Sequence[str]], list[bool]]:
    return lambda asked: [key in keys for key in asked]


@pytest.mark.parametrize(("name", "write"), FORMATS)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_every_format_gives_the_same_keys_and_captions(tmp_path: Path, name: str, write: Write, size: int) -> None:
    records = [{"id": f"k{i}", "text": f'caption "{i}"\nof two, lines' if i % 2 else f"c{i}"} for i in range(8)]
    corpus = open_corpus([write(tmp_path / name, records)], "text")
    units = corpus.plan([], size).units
    assert [unit.rows for unit in units] == [min(size, 8 - i) for i in range(0, 8, size)]
    found = read_all(corpus, units)
    assert [(f.key, f.data) for f in found] == [(r["id"], r["text"]) for r in records]


def test_lines_are_the_keys_of_a_table_without_a_key_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('caption\nfirst\n"second,\nof two lines"\nthird\n')
    corpus = open_corpus([path], "text")
    units = corpus.plan([], 2).units
    assert [f.key for f in read_all(corpus, units)] == ["t:000000002", "t:000000003", "t:000000005"]
    parquet = open_corpus([write_parquet(tmp_path / "p.parquet", [{"caption": c} for c in "abcd"])], "text")
    assert [f.key for f in read_all(parquet, parquet.plan([], 3).units)] == [f"p:00000000{n}" for n in (1, 2, 3, 4)]


cell = st.text(alphabet=st.sampled_from('a", \n\r\té;'), max_size=6).map(lambda s: s + "x")


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(cell, min_size=1, max_size=12), size=st.integers(1, 5), crlf=st.booleans())
def test_csv_pieces_read_back_what_the_csv_module_reads(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], size: int, crlf: bool
) -> None:
    buffer = io.StringIO(newline="")
    # csv itself leaves a lone carriage return unquoted where lines end in \n, and then cannot read it
    quoting = csv.QUOTE_MINIMAL if crlf else csv.QUOTE_ALL
    writer = csv.writer(buffer, lineterminator="\r\n" if crlf else "\n", quoting=quoting)
    writer.writerow(["key", "caption"])
    writer.writerows((f"k{i}", text) for i, text in enumerate(cells))
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode())
    corpus = open_corpus([path], "text")
    units = corpus.plan([], size).units
    assert [f.data for f in read_all(corpus, units)] == cells
    spans = [(piece.start, piece.stop) for unit in units for piece in unit.pieces]
    assert all(stop == start for (_, stop), (start, _) in pairwise(spans))
    assert spans[-1][1] == path.stat().st_size


def test_columns_can_be_named_and_a_missing_one_is_said(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"uid": 7, "prompt": "a dog", "label": "x"}])
    with pytest.raises(CorpusError, match="no caption column") as caught:
        open_corpus([path], "text")
    assert "uid, prompt, label" in str(caught.value)
    assert "--caption-column" in str(caught.value)
    corpus = open_corpus([path], "text", CorpusSettings(key_column="uid", caption_column="prompt"))
    (item,) = read_all(corpus, corpus.plan([], 10).units)
    assert (item.key, item.data, item.meta) == ("7", "a dog", {"label": "x"})
    with pytest.raises(CorpusError, match="'nope'"):
        open_corpus([path], "text", CorpusSettings(key_column="nope", caption_column="prompt"))


def test_several_captions_of_a_row_get_numbered_keys_and_are_never_split(tmp_path: Path) -> None:
    records = [{"key": f"k{i}", "caption": [f"{i} {n}" for n in range(5)]} for i in range(3)]
    records.append({"key": "single", "caption": ["only"]})
    for path in (write_jsonl(tmp_path / "t.jsonl", records), write_parquet(tmp_path / "t.parquet", records)):
        corpus = open_corpus([path], "text")
        units = corpus.plan([], 7).units
        assert [unit.rows for unit in units] == [5, 5, 6]
        keys = [f.key for f in read_all(corpus, units)]
        assert keys == [f"k{i}#{n}" for i in range(3) for n in range(5)] + ["single"]


def test_bad_rows_become_failures_and_keep_the_count(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = b'{"key": "a", "caption": "x"}'
    bad = [b"{broken", b"[1]", b'{"key": null, "caption": "x"}', b'{"key": "b", "caption": ""}', b"\xff\xfe{}"]
    more = [
        b'{"key": "c", "caption": 5}',
        b'{"key": "d", "caption": "a\\u0000b"}',
        b"",
        b'{"key": true, "caption": "x"}',
    ]
    path.write_bytes(b"\n".join([good, *bad, *more]) + b"\n")
    corpus = open_corpus([path], "text")
    update = corpus.plan([], 100)
    found = read_all(corpus, update.units)
    shown = [(f.key, f.error) for f in found if isinstance(f, Failure)]
    assert shown == [
        ("t:000000002", "BadRow"),
        ("t:000000003", "BadRow"),
        ("t:000000004", "NoKey"),
        ("b", "BadCaption"),
        ("t:000000006", "BadRow"),
        ("c", "BadCaption"),
        ("d", "BadCaption"),
        ("t:000000010", "NoKey"),
    ]
    assert len(found) == update.units[0].rows == 9
    assert update.remarks == ("t.jsonl: 1 blank lines are no items",)


def test_a_csv_row_with_too_many_cells_or_bad_bytes_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"key,caption\na,x\nb,y,z\nc,\xe9\nd,w\n")
    corpus = open_corpus([path], "text")
    found = read_all(corpus, corpus.plan([], 2).units)
    assert [f.key for f in found] == ["a", "t:000000003", "t:000000004", "d"]
    assert "3 cells, but the header has 2" in found[1].message  # type: ignore[union-attr]


def test_equal_keys_are_refused_naming_both_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"id": i % 5, "text": "x"} for i in range(6)])
    with pytest.raises(DuplicateKeyError) as caught:
        open_corpus([path], "text").plan([], 2)
    assert "'0'" in str(caught.value)
    assert "line 1 and" in str(caught.value)
    assert "line 6" in str(caught.value)


def test_equal_keys_of_two_tables_are_refused_naming_both_files(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "a.jsonl", [{"id": 1, "text": "x"}])
    two = write_csv(tmp_path / "b.csv", [{"id": "1", "text": "y"}])
    with pytest.raises(DuplicateKeyError) as caught:
        open_corpus([one, two], "text").plan([], 2)
    assert "a.jsonl" in str(caught.value)
    assert "b.csv" in str(caught.value)


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_rows_added_at_the_end_alone_are_new(tmp_path: Path, name: str, write: Write) -> None:
    records = [{"id": f"k{i}", "text": f"c{i}"} for i in range(9)]
    path = write(tmp_path / name, records[:5])
    first = open_corpus([path], "text").plan([], 3).units
    write(path, records)
    corpus = open_corpus([path], "text")
    done = known({f"k{i}" for i in range(5)})
    update = corpus.plan([Plan(0, 3, first)], 3, first_shard=2, known_keys=done)
    assert (update.known, update.changed) == (5, ())
    assert [f.key for f in read_all(corpus, update.units)] == ["k5", "k6", "k7", "k8"]
    assert [f.key for f in read_all(corpus, first)] == [f"k{i}" for i in range(5)]


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_rows_put_in_the_middle_of_a_keyed_table_alone_are_new(tmp_path: Path, name: str, write: Write) -> None:
    records = [{"id": f"k{i}", "text": f"c{i}"} for i in range(7)]
    path = write(tmp_path / name, records)
    first = open_corpus([path], "text").plan([], 2).units
    new = [{"id": f"n{i}", "text": f"new {i}"} for i in range(3)]
    write(path, [new[0], *records[:3], new[1], *records[3:], new[2]])
    corpus = open_corpus([path], "text")
    done = known({r["id"] for r in records})
    update = corpus.plan([Plan(0, 2, first)], 2, first_shard=4, known_keys=done)
    assert (update.known, update.changed) == (7, ())
    assert [f.key for f in read_all(corpus, update.units)] == ["n0", "n1", "n2"]
    everything = known({r["id"] for r in (*records, *new)})
    again = corpus.plan([Plan(0, 2, first), Plan(1, 2, update.units)], 2, first_shard=6, known_keys=everything)
    assert (again.units, again.known, again.changed) == ((), 10, ())


def test_rows_that_are_planned_but_not_in_the_cache_are_not_planned_twice(tmp_path: Path) -> None:
    records = [{"id": f"k{i}", "text": f"c{i}"} for i in range(6)]
    path = write_jsonl(tmp_path / "t.jsonl", records)
    first = open_corpus([path], "text").plan([], 2).units
    write_jsonl(path, [*records[:4], {"id": "n", "text": "new"}, *records[4:]])
    corpus = open_corpus([path], "text")
    # k0 failed, k1 was never reached: both belong to a piece that still agrees
    update = corpus.plan([Plan(0, 2, first)], 2, first_shard=3, known_keys=known({"k2", "k3", "k4", "k5"}))
    assert [f.key for f in read_all(corpus, update.units)] == ["n"]
    assert (update.known, update.changed) == (6, ())


def test_a_changed_row_of_a_keyed_table_is_listed_and_not_planned_again(tmp_path: Path) -> None:
    records = [{"id": f"k{i}", "text": f"c{i}"} for i in range(6)]
    path = write_jsonl(tmp_path / "t.jsonl", records)
    first = open_corpus([path], "text").plan([], 2).units
    records[2]["text"] = "another text"
    write_jsonl(path, [*records, {"id": "k6", "text": "c6"}])
    corpus = open_corpus([path], "text")
    update = corpus.plan([Plan(0, 2, first)], 2, first_shard=3, known_keys=known({f"k{i}" for i in range(6)}))
    assert update.changed == ("t.jsonl rows that began at line 3",)
    assert [f.key for f in read_all(corpus, update.units)] == ["k6"]
    with pytest.raises(CorpusError, match="changed since it was planned"):
        list(corpus.read(first[1]))


def test_media_come_from_the_path_column_relative_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "d" / "img").mkdir(parents=True)
    (tmp_path / "d" / "img" / "a.png").write_bytes(b"picture")
    records = [
        {"key": "a", "path": "img/a.png", "caption": "a dog", "label": "dog", "score": float("nan")},
        {"key": "b", "path": "img/none.png"},
        {"key": "c", "path": "https://example.org/c.png"},
        {"key": "d", "path": "img"},
        {"key": "e", "path": None},
        {"key": "f", "path": "pipe:cat img/a.png"},
        {"key": "g", "path": "x\ud800.png"},
        {"key": "h", "path": str(tmp_path / "d" / "img" / "a.png")},
    ]
    corpus = open_corpus([write_jsonl(tmp_path / "d" / "t.jsonl", records)], "image")
    found = read_all(corpus, corpus.plan([], 100).units)
    item = found[0]
    assert isinstance(item, Item)
    assert (item.key, item.data, item.caption, item.source) == ("a", b"picture", "a dog", "img/a.png")
    assert item.meta == {"label": "dog", "score": None}
    errors = [f.error for f in found[1:-1] if isinstance(f, Failure)]
    assert errors == ["FileNotFoundError", "RemotePath", "NotAFile", "NoPath", "RemotePath", "NoPath"]
    assert isinstance(found[-1], Item)
    assert found[-1].source == "img/a.png"
    assert corpus.roots == {"t.jsonl": str(tmp_path / "d")}


def test_paths_may_be_relative_to_the_folder_named_like_the_table(tmp_path: Path) -> None:
    for name in ("images/a.png", "images/b.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    corpus = open_corpus([write_jsonl(tmp_path / "images.jsonl", [{"file": "a.png"}, {"file": "b.png"}])], "image")
    found = read_all(corpus, corpus.plan([], 10).units)
    assert [(f.key, f.data, f.source) for f in found] == [
        ("images:000000001", b"images/a.png", "images/a.png"),
        ("images:000000002", b"b.png", "b.png"),
    ]


@pytest.mark.kit
@pytest.mark.parametrize(("name", "modality"), [("images", "image"), ("audio", "audio"), ("points", "pointcloud")])
def test_the_tables_of_the_kit_find_their_files(kit: Path, name: str, modality: Modality) -> None:
    corpus = open_corpus([kit / "raw" / f"{name}.jsonl"], modality)
    found = read_all(corpus, corpus.plan([], 10).units)
    assert len(found) in (40, 48, 64)
    assert all(isinstance(f, Item) and "label" in (f.meta or {}) for f in found)


def test_a_parquet_table_may_hold_the_files_itself(tmp_path: Path) -> None:
    records = [{"id": i, "image": {"bytes": b"picture %d" % i, "path": f"{i}.png"}, "vector": [0.5]} for i in range(4)]
    corpus = open_corpus([write_parquet(tmp_path / "t.parquet", records)], "image")
    found = read_all(corpus, corpus.plan([], 3).units)
    assert [(f.key, f.data, f.name) for f in found] == [(str(i), b"picture %d" % i, f"{i}.png") for i in range(4)]


def test_a_table_in_a_folder_without_the_column_is_passed_over_with_a_remark(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "labels.jsonl", [{"file": "a.jpg"}])
    (tmp_path / "c.txt").write_text("one\n")
    update = open_corpus([tmp_path], "text").plan([], 10)
    assert [unit.rows for unit in update.units] == [1]
    assert update.remarks[0].startswith("labels.jsonl: the table has no caption column")


def test_empty_tables_have_no_items(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.csv").write_text("key,caption\n")
    (tmp_path / "c.csv").write_text("")
    update = open_corpus([tmp_path], "text").plan([], 10)
    assert update.units == ()
    assert update.remarks == ("a.jsonl has no rows", "b.csv has no rows", "c.csv has no rows")
