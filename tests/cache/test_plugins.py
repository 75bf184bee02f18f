"""Names of things in Python files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from cmcr.cache.errors import CmcrError, EncoderError, ItemError
from cmcr.cache.plugins import is_file_name, load_from_file, named_errors, recorded_name


def test_a_file_name_has_a_file_and_a_name_in_it() -> None:
    assert [is_file_name(name) for name in ("my.py:A", "/x y/my.py:_b", "my.py", "my.py:", "my.py:a-b", "fam:m/w")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
    assert recorded_name("/x/my.py:A") == "my.py:A"
    assert recorded_name("../my.py:A") == "my.py:A"
    assert recorded_name("open_clip:ViT-B-32//data/w.pt") == "open_clip:ViT-B-32//data/w.pt"


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my.py").write_text(f"class A:\n    where = {folder!r}\n")
    found = [load_from_file(f"{tmp_path}/{folder}/my.py:A", CmcrError, flag="--x") for folder in ("a", "b")]
    assert [one.value.where for one in found] == ["a", "b"]
    assert found[0].name == found[1].name == "my.py:A"
    assert found[0].source_hash != found[1].source_hash
    assert load_from_file(f"{tmp_path}/a/my.py:A", CmcrError, flag="--x").value is found[0].value


def test_annotations_are_evaluated_as_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    for head, kind in (("", int), ("from __future__ import annotations\n", "int")):
        file.write_text(f"{head}def f(x: int): ...\n")
        assert load_from_file(f"{file}:f", CmcrError, flag="--x").value.__annotations__ == {"x": kind}


def test_an_edit_of_the_same_size_and_second_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    for value in ("1", "2"):
        file.write_text(f"A = {value}\n")
        os.utime(file, (1, 1))
        assert load_from_file(f"{file}:A", CmcrError, flag="--x").value == int(value)


def test_a_file_that_raises_is_named_with_its_line_and_leaves_no_module(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    before = set(sys.modules)
    for source, message in (("\n\n1 / 0\n", "ZeroDivisionError"), ("def :\n", "SyntaxError"), ("exit()", "SystemExit")):
        file.write_text(source)
        with pytest.raises(EncoderError, match=rf"my\.py raised {message}") as caught:
            load_from_file(f"{file}:A", EncoderError, flag="--encoder")
        assert type(caught.value.__cause__).__name__ == message
        if message == "ZeroDivisionError":
            assert caught.value.where == f"{file}, line 3"
    assert not {name for name in set(sys.modules) - before if name.startswith("cmcr_file_")}


def test_our_own_errors_and_interrupts_pass() -> None:
    for error in (ItemError("bad"), KeyboardInterrupt()):
        with pytest.raises(type(error)), named_errors(EncoderError, "work", "place"):
            raise error
    with pytest.raises(EncoderError, match="work raised ValueError: no"), named_errors(EncoderError, "work", "place"):
        raise ValueError("no")
