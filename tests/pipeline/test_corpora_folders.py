"""Folders, globs and single media files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest
from cmcr.cache.errors import CorpusError, DuplicateKeyError
from cmcr.cache.keys import stem
from cmcr.cache.ledger import Failure
from cmcr.cache.plan import Plan, Unit
from cmcr.pipeline.corpora import CorpusSettings, FileCorpus, open_corpus
from cmcr.pipeline.encoders.base import Item
from hypothesis import given
from hypothesis import strategies as st


def read_all(corpus: FileCorpus, units: tuple[Unit, ...]) -> list[Item | Failure]:
    return [found for unit in units for found in corpus.read(unit)]


def fill(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"content of {name}".encode())
    return root


def keys_of(corpus: FileCorpus, size: int = 100) -> list[str]:
    return [found.key for found in read_all(corpus, corpus.plan([], size).units)]


@given(parts=st.lists(st.text(alphabet="ab. é", min_size=1, max_size=6), min_size=1, max_size=3))
def test_the_stem_of_a_path_is_that_of_pathlib(parts: list[str]) -> None:
    if all(part.strip(".") for part in parts):
        assert stem("/".join(parts)) == str(PurePosixPath("/".join(parts)).with_suffix(""))


def test_keys_are_paths_without_extension_in_posix_order(tmp_path: Path) -> None:
    names = ["b.JPG", "a/z.png", "a.b.jpeg", "a-1.gif", "a/b/c.webp"]
    for root in (tmp_path / "one", tmp_path / "two"):
        fill(root, names)
        assert keys_of(open_corpus([root], "image")) == ["a-1", "a.b", "a/b/c", "a/z", "b"]
    plans = [open_corpus([tmp_path / name], "image").plan([], 2).units for name in ("one", "two")]
    assert [unit.rows for unit in plans[0]] == [2, 2, 1]
    assert [[p.files for p in unit.pieces] for unit in plans[0]] == [
        [p.files for p in unit.pieces] for unit in plans[1]
    ]


def test_a_glob_and_its_expansion_and_the_folder_give_the_same_items(tmp_path: Path) -> None:
    root = fill(tmp_path / "img", ["b.jpg", "a.jpg", "c.jpg"])
    ways = [
        [root],
        [str(root / "*.jpg")],
        [root / "c.jpg", root / "a.jpg", root / "b.jpg"],
        [str(root / "**" / "*.jpg")],
    ]
    plans = [open_corpus(way, "image").plan([], 2).units for way in ways]
    assert plans[0] == plans[1] == plans[2] == plans[3]


def test_two_files_of_one_stem_are_refused_naming_both(tmp_path: Path) -> None:
    root = fill(tmp_path, ["x/a.jpg", "x/a.png", "x/b.png"])
    with pytest.raises(DuplicateKeyError) as caught:
        open_corpus([root], "image").plan([], 10)
    assert "'x/a'" in str(caught.value)
    assert "a.jpg" in str(caught.value)
    assert "a.png" in str(caught.value)


def test_the_same_path_under_two_roots_is_refused_and_distinct_ones_are_not(tmp_path: Path) -> None:
    fill(tmp_path, ["one/img/a.jpg", "two/img/a.jpg", "three/img/b.jpg"])
    with pytest.raises(DuplicateKeyError):
        open_corpus([tmp_path / "one" / "img", tmp_path / "two" / "img"], "image").plan([], 10)
    corpus = open_corpus([tmp_path / "one" / "img", tmp_path / "three" / "img"], "image")
    assert list(corpus.roots) == ["img", "img~2"]
    assert keys_of(corpus) == ["a", "b"]


def test_what_is_left_out_is_counted_and_said(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg", "b.m4a", "c.m4a", "README", ".DS_Store", ".cache/x.jpg", "a.txt"])
    os.mkfifo(tmp_path / "pipe.jpg")
    update = open_corpus([tmp_path], "image").plan([], 10)
    name = tmp_path.name
    assert update.remarks == (
        f"{name}: 3 files are no image input: 1 without extension, 2 .m4a",
        f"{name}: 2 hidden entries (names that begin with a dot) are left out",
        f"{name}: 1 pipes, sockets or devices are left out",
    )
    assert [unit.rows for unit in update.units] == [1]


def test_linked_folders_are_followed_once_and_dead_links_are_failures(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", ["a.jpg"])
    (root / "loop").symlink_to(root)
    (root / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    corpus = open_corpus([root], "image")
    units = corpus.plan([], 10).units
    for _ in range(2):
        found = read_all(corpus, units)
        assert [(f.key, isinstance(f, Item)) for f in found] == [("a", True), ("dead", False)]
    assert "cannot be read" in found[1].message  # type: ignore[union-attr]


def test_captions_and_records_beside_media_come_along(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "a.txt").write_text("\ufeffa dog\r\n\r\nin snow\r\n")
    (tmp_path / "b.json").write_text('{"caption": "a cat\\ud800", "n": 1, "x": NaN}')
    (tmp_path / "c.json").write_text("{broken")
    found = read_all(corpus := open_corpus([tmp_path], "image"), corpus.plan([], 10).units)
    assert [f.caption for f in found] == ["a dog\nin snow", "a cat?", None]
    assert found[1].meta == {"caption": "a cat?", "n": 1, "x": None}
    assert corpus.remarks == ()


def test_captions_beside_media_have_the_keys_of_the_media(tmp_path: Path) -> None:
    fill(tmp_path, ["x/a.jpg", "b.wav", "c.png"])
    (tmp_path / "x" / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three")
    (tmp_path / "c.txt").write_text("\n")
    (tmp_path / "list.txt").write_text("four\n")
    corpus = open_corpus([tmp_path], "text")
    update = corpus.plan([], 2)
    found = read_all(corpus, update.units)
    assert [(f.key, f.data if isinstance(f, Item) else None) for f in found] == [
        ("b", "three"),
        ("c", None),
        ("x/a#0", "one"),
        ("x/a#1", "two"),
        ("list:000000001", "four"),
    ]
    assert [unit.rows for unit in update.units] == [2, 2, 1]


def test_new_files_alone_are_new(tmp_path: Path) -> None:
    fill(tmp_path, ["b.jpg", "d.jpg"])
    first = open_corpus([tmp_path], "image").plan([], 10).units
    fill(tmp_path, ["a.jpg", "c.jpg", "e/f.jpg"])
    corpus = open_corpus([tmp_path], "image")
    update = corpus.plan([Plan(0, 10, first)], 2, first_shard=1)
    assert (update.known, update.changed, update.vanished) == (2, (), ())
    assert [f.key for f in read_all(corpus, update.units)] == ["a", "c", "e/f"]
    assert [unit.shard for unit in update.units] == [1, 2]
    assert [f.key for f in read_all(corpus, first)] == ["b", "d"]


def test_keys_that_the_cache_has_are_known(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg", "b.jpg"])
    update = open_corpus([tmp_path], "image").plan([], 10, known_keys=lambda keys: [key == "a" for key in keys])
    assert update.known == 1
    assert [p.files[0][0] for unit in update.units for p in unit.pieces] == ["b.jpg"]


def test_changed_and_vanished_files_are_listed_and_not_planned_again(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"])
    first = open_corpus([tmp_path], "image").plan([], 2).units
    (tmp_path / "a.jpg").unlink()
    fill(tmp_path, ["a.png"])
    (tmp_path / "b.jpg").write_bytes(b"longer than it was before, by some")
    (tmp_path / "d.jpg").write_bytes((tmp_path / "d.jpg").read_bytes().swapcase())
    corpus = open_corpus([tmp_path], "image")
    update = corpus.plan([Plan(0, 2, first)], 2, first_shard=3)
    assert update.units == ()
    assert update.vanished == ("a.jpg",)
    assert update.changed == (
        "b.jpg",
        "c.jpg … d.jpg (at least one of 2, same size)",
        "a.png (another file had the key 'a' before)",
    )
    for unit in first[:2]:
        with pytest.raises(CorpusError, match="changed since it was planned"):
            list(corpus.read(unit))
    assert [f.key for f in corpus.read(first[2])] == ["e"]


def test_a_renamed_root_is_the_same_corpus(tmp_path: Path) -> None:
    fill(tmp_path / "one", ["a.jpg", "b.jpg"])
    first = open_corpus([tmp_path / "one"], "image").plan([], 1).units
    (tmp_path / "one").rename(tmp_path / "two")
    fill(tmp_path / "two", ["c.jpg"])
    corpus = open_corpus([tmp_path / "two"], "image")
    update = corpus.plan([Plan(0, 1, first)], 1, first_shard=2)
    assert (update.known, update.vanished) == (2, ())
    assert [f.key for f in read_all(corpus, (*first, *update.units))] == ["a", "b", "c"]


def test_names_that_are_not_utf8_and_long_names_are_read(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/na\xefve.jpg"
    with open(raw, "wb") as handle:
        handle.write(b"x")
    long = "l" * (255 - len(".jpg"))
    fill(tmp_path, [f"{long}.jpg", "line\nbreak.jpg", "/".join(["deep" * 50] * 6) + "/a.jpg"])
    corpus = open_corpus([tmp_path], "image")
    found = read_all(corpus, corpus.plan([], 10).units)
    assert {f.key for f in found if isinstance(f, Item)} == {"na\\xefve", long}
    assert {f.error for f in found if isinstance(f, Failure)} == {"BadKey"}
    assert len(found) == 4


def test_a_file_beyond_the_limit_is_a_failure(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg"])
    corpus = open_corpus([tmp_path], "image", CorpusSettings(max_item_bytes=5))
    (failure,) = read_all(corpus, corpus.plan([], 10).units)
    assert isinstance(failure, Failure)
    assert failure.error == "TooLarge"


def test_a_pattern_chooses_files(tmp_path: Path) -> None:
    fill(tmp_path, ["a/x.jpg", "b/x.jpg"])
    corpus = open_corpus([tmp_path], "image", CorpusSettings(pattern="b/*"))
    assert keys_of(corpus) == ["b/x"]
    assert corpus.remarks == (f"{tmp_path.name}: 1 files do not match the pattern 'b/*'",)


@pytest.mark.kit
@pytest.mark.parametrize(
    ("folder", "modality", "count"), [("images", "image", 64), ("audio", "audio", 48), ("points", "pointcloud", 40)]
)
def test_every_good_file_of_the_kit_is_an_item(kit: Path, folder: str, modality: str, count: int) -> None:
    corpus = open_corpus([kit / "raw" / folder], modality)  # type: ignore[arg-type]
    found = read_all(corpus, corpus.plan([], 7).units)
    assert len(found) == count
    assert all(isinstance(f, Item) for f in found)
