"""What may stand behind --input, and what is refused."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from cmcr.cache.errors import CorpusError, DuplicateKeyError
from cmcr.pipeline.corpora import open_corpus


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x\n")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("pipe:cat x.tar", "pipes are never run"),
        ("| cat x.tar", "pipes are never run"),
        ("/nowhere/x.jpg", "does not exist"),
        ("/nowhere/*.jpg", "matches no file"),
        ("/nowhere/{0..2}.tar", "does not exist"),
        ("/nowhere/{0..2.tar", "braces do not match"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_runs(given: str, said: str) -> None:
    with pytest.raises(CorpusError, match=said):
        open_corpus([given], "image")


def test_nothing_of_the_modality_says_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.docx")
    with pytest.raises(CorpusError) as caught:
        open_corpus([tmp_path], "audio")
    message = str(caught.value)
    assert "no audio input found" in message
    assert "1 .docx, 1 .mp4" in message
    assert ".flac" in message
    with pytest.raises(CorpusError, match="no input was given"):
        open_corpus([], "audio")
    with pytest.raises(CorpusError, match="unknown modality"):
        open_corpus([tmp_path], "video")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "said"),
    [("c.txt", r"a \.txt file is no image input"), ("x.tar.gz", "compressed"), ("README", "without extension")],
)
def test_a_named_file_of_another_kind_is_refused(tmp_path: Path, name: str, said: str) -> None:
    touch(tmp_path, name)
    with pytest.raises(CorpusError, match=said):
        open_corpus([tmp_path / name], "image")


def test_brace_ranges_expand_in_order(tmp_path: Path) -> None:
    for i in range(4):
        tarfile.open(tmp_path / f"s-{i:03d}.tar", "w").close()
    corpus = open_corpus([str(tmp_path / "s-{000..002}.tar")], "image")
    assert list(corpus.roots) == ["s-000.tar", "s-001.tar", "s-002.tar"]
    with pytest.raises(CorpusError, match="does not exist"):
        open_corpus([str(tmp_path / "s-{002..004}.tar")], "image")


def test_inputs_of_several_kinds_are_one_corpus(tmp_path: Path) -> None:
    touch(tmp_path, "one.txt", "folder/two.txt", "folder/sub/three.txt")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    corpus = open_corpus([tmp_path / "t.jsonl", tmp_path / "folder", tmp_path / "one.txt"], "text")
    units = corpus.plan([], 100).units
    keys = [f.key for unit in units for f in corpus.read(unit)]
    assert keys == ["t:000000001", "t:000000002", "sub/three:000000001", "two:000000001", "one:000000001"]
    assert corpus.roots["sub/three.txt"] == str(tmp_path / "folder" / "sub" / "three.txt")


def test_two_inputs_of_one_stem_are_refused_naming_both(tmp_path: Path) -> None:
    touch(tmp_path, "a/c.txt", "b/c.txt")
    with pytest.raises(DuplicateKeyError) as caught:
        open_corpus([tmp_path / "a" / "c.txt", tmp_path / "b" / "c.txt"], "text").plan([], 10)
    assert str(tmp_path / "a" / "c.txt") in str(caught.value)
    assert str(tmp_path / "b" / "c.txt") in str(caught.value)
    corpus = open_corpus([tmp_path], "text")
    assert [f.key for unit in corpus.plan([], 10).units for f in corpus.read(unit)] == [
        "a/c:000000001",
        "b/c:000000001",
    ]


def test_keys_of_a_column_that_are_lines_of_a_file_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "c.txt")
    table = tmp_path / "t.jsonl"
    table.write_text('{"key": "c:000000002", "text": "x"}\n')
    open_corpus([tmp_path], "text").plan([], 10)
    table.write_text('{"key": "c:000000001", "text": "x"}\n')
    with pytest.raises(DuplicateKeyError, match="c:000000001"):
        open_corpus([tmp_path], "text").plan([], 10)


def test_files_under_the_name_of_a_tar_are_refused_only_if_they_meet(tmp_path: Path) -> None:
    touch(tmp_path, "s/b.jpg")
    (tmp_path / "a.jpg").write_bytes(b"x")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(tmp_path / "a.jpg", "a.jpg")
    (tmp_path / "a.jpg").unlink()
    open_corpus([tmp_path], "image").plan([], 10)
    touch(tmp_path, "s/a.jpg")
    with pytest.raises(DuplicateKeyError, match="s/a"):
        open_corpus([tmp_path], "image").plan([], 10)


def test_a_shard_size_below_one_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "c.txt")
    with pytest.raises(CorpusError, match="shard size"):
        open_corpus([tmp_path], "text").plan([], 0)
