from __future__ import annotations

import os
import posix
import stat
from pathlib import Path

import pytest
from cmcr.cache import fsio
from cmcr.cache.errors import CacheError


@pytest.fixture
def calls(monkeypatch):
    """Names of the calls as they come, true fsyncs of descriptors among them."""
    seen: list[str] = []

    def fsync(handle: int) -> None:
        seen.append("folder synced" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file synced")
        posix.fsync(handle)

    monkeypatch.setattr(fsio.os, "fsync", fsync)
    monkeypatch.setattr(fsio, "HOOKS", [lambda call, path: seen.append(call)])
    return seen


def test_a_file_is_checked_and_durable_before_it_gets_its_name_and_the_name_after(tmp_path, calls):
    checked = []
    fsio.write_atomic(tmp_path / "a.bin", b"x" * 10, lambda path: checked.append((path.name[:7], path.read_bytes())))
    assert calls == [
        "open",
        "write",
        "close",
        "reopen",
        "fsync",
        "file synced",
        "replace",
        "fsync-folder",
        "folder synced",
    ]
    assert checked == [(".a.bin.", b"x" * 10)]
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_a_check_that_fails_keeps_the_file_that_was_there(tmp_path):
    def refuse(path: Path) -> None:
        raise CacheError("no")

    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(CacheError, match="no"):
        fsio.write_atomic(tmp_path / "a.bin", b"new", refuse)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_an_unwritable_folder_is_a_clear_error(tmp_path):
    with pytest.raises(CacheError, match="Cannot write: No such file"):
        fsio.write_atomic(tmp_path / "missing/a.bin", b"x")


def test_sizes_and_checksums_come_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(fsio, "WRITE_BLOCK", 7)
    fsio.write_atomic(tmp_path / "a.bin", b"123456789")
    assert fsio.file_crc32(tmp_path / "a.bin") == (9, 0xCBF43926)


def test_names_of_temporary_files_are_told_from_others(tmp_path):
    assert fsio.is_temporary(fsio.temporary_name(tmp_path / "a.json").name)
    assert not fsio.is_abandoned(".a.json.tmp-some.other.host-1-2")
    assert not any(fsio.is_temporary(name) for name in ("a.json", ".a.json", ".tmp-1", ".a.tmp-host-x-1"))
    assert fsio.sweep(tmp_path / "missing") == []
