"""Corpora and caches at URLs: the keys, plans, identities and rows of a local copy; one line for what goes wrong."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import numpy as np
import pytest
from cmcr.cache import fsio
from cmcr.cache.errors import CacheError, CmcrError, CorpusError, MissingExtraError
from cmcr.cache.reader import Cache, open_cache
from cmcr.cache.remote import RemotePath, version_of
from cmcr.cache.remote_cache import RemoteCache
from cmcr.cache.urls import as_url, local_path
from cmcr.pipeline.corpora import open_corpus
from cmcr.pipeline.encode import encode
from PIL import Image

FILE = Path(__file__).with_name("my_encoders.py")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges; notes what is asked, and breaks off or refuses what it is told to."""

    asked: list[str]
    cut: dict[str, int]
    refused: dict[str, int]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(unquote(self.path))
        name = unquote(self.path).rpartition("/")[2]
        if name in self.refused:
            self.send_error(self.refused[name])
        elif self.cut.get(name, 0) > 0:
            self.cut[name] -= 1
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            super().do_GET()


class Server:
    """A web server on this machine over a folder."""

    def __init__(self, folder: Path) -> None:
        self.handler = type("H", (Handler,), {"asked": [], "cut": {}, "refused": {}})
        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(self.handler, directory=str(folder))
        )
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    (tmp_path / "data").mkdir()
    server = Server(tmp_path / "data")
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture(autouse=True)
def _spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CMCR_REMOTE_CACHE", str(tmp_path / "spool"))
    monkeypatch.setattr("cmcr.cache.remote.time.sleep", lambda seconds: None)
    yield
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def fill(folder: Path) -> None:
    """A corpus of every kind that is not parquet."""
    (folder / "photos" / "sea side").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "sea side/c ü.png", ".hidden.png")):
        Image.new("RGB", (40 + number, 20), (number * 60, 90, 200)).save(folder / "photos" / name)
    (folder / "photos" / "a.txt").write_text("a red boat\n")
    (folder / "captions.txt").write_text("".join(f"caption number {i}\n" for i in range(1000)))
    (folder / "table.csv").write_text("key,caption\n" + "".join(f"k{i},text {i}\n" for i in range(30)))
    (folder / "lines.jsonl").write_text("".join(f'{{"id": "j{i}", "text": "t {i}"}}\n' for i in range(20)))
    (folder / "media.csv").write_text("id,path\none,photos/a.png\ntwo,photos/gone.png\n")
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as archive:
            for number in range(3):
                for suffix, data in (("png", (folder / "photos" / "b.png").read_bytes()), ("txt", b"words")):
                    info = tarfile.TarInfo(f"{shard}{number}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def upload(folder: Path, base: str) -> None:
    memory = fsspec.filesystem("memory")
    for file in folder.rglob("*"):
        if file.is_file():
            memory.pipe_file(f"{base}/{file.relative_to(folder).as_posix()}", file.read_bytes())


GIVEN = [
    ("text", "captions.txt"),
    ("text", "table.csv"),
    ("text", "lines.jsonl"),
    ("text", "s-{0..1}.tar"),
    ("image", "s-0.tar"),
    ("image", "photos"),
    ("image", "photos/"),
    ("image", "photos/b.png"),
    ("image", "media.csv"),
    ("text", "photos"),
]


def everything(given: str, modality: Any) -> Any:
    """Plan and content of an input."""
    corpus = open_corpus([given], modality)
    update = corpus.plan([], 16)
    return update, [list(corpus.read(unit)) for unit in update.units]


@pytest.mark.parametrize(("modality", "name"), GIVEN)
@pytest.mark.parametrize("kind", ["memory", "http"])
def test_a_corpus_at_a_url_has_the_plan_and_the_items_of_its_local_copy(
    tmp_path: Path, web: Server, kind: str, modality: str, name: str
) -> None:
    fill(tmp_path / "data")
    upload(tmp_path / "data", "memory://bucket/data")
    base = web.url if kind == "http" else "memory://bucket/data"
    assert everything(f"{base}/{name}", modality) == everything(f"{tmp_path}/data/{name}", modality)


def test_a_pattern_of_urls_is_that_of_local_paths(tmp_path: Path) -> None:
    fill(tmp_path / "data")
    upload(tmp_path / "data", "memory://bucket/data")
    for modality, pattern in (("image", "*.tar"), ("image", "photos/**/*.png"), ("image", "s-[1-9].tar")):
        assert everything(f"memory://bucket/data/{pattern}", modality) == everything(
            f"{tmp_path}/data/{pattern}", modality
        )
    with pytest.raises(CorpusError, match="the pattern matches no file"):
        open_corpus(["memory://bucket/data/*.nothing"], "text")


def test_parquet_is_read_at_a_url(tmp_path: Path, web: Server) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "data" / "t.parquet"
    parquet.write_table(arrow.table({"key": [f"k{i}" for i in range(40)], "caption": ["c"] * 40}), file)
    assert everything(f"{web.url}/t.parquet", "text") == everything(str(file), "text")


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    fill(tmp_path / "data")
    assert everything(f"file://{tmp_path}/data/photos/sea%20side", "image") == everything(
        f"{tmp_path}/data/photos/sea side", "image"
    )
    assert local_path("file:///a/b%20c") == "/a/b c"
    assert as_url(Path("s3://bucket/x")) == "s3://bucket/x"
    assert as_url("captions.txt") is None
    assert as_url("C:/captions.txt") is None


def test_a_large_file_is_identified_by_its_ends_and_fetched_once(tmp_path: Path, web: Server) -> None:
    (tmp_path / "data" / "t.txt").write_text("".join(f"caption {i}\n" for i in range(5000)))
    corpus = open_corpus([f"{web.url}/t.txt"], "text")
    for unit in corpus.plan([], 1000).units:
        assert len(list(corpus.read(unit))) == 1000
    assert web.handler.asked.count("/t.txt") == 1
    everything(f"{web.url}/t.txt", "text")
    assert web.handler.asked.count("/t.txt") == 1
    (tmp_path / "data" / "t.txt").write_text("other\n" * 7)
    assert len(everything(f"{web.url}/t.txt", "text")[1][0]) == 7
    assert [path.suffix for path in (tmp_path / "spool").iterdir()] == [".txt", ".txt"]


def test_old_copies_make_room_for_new_ones(tmp_path: Path, web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMCR_REMOTE_CACHE_BYTES", "2500")
    for name in "abcd":
        (tmp_path / "data" / f"{name}.txt").write_text("x" * 1000 + "\n")
        everything(f"{web.url}/{name}.txt", "text")
    assert sum(path.stat().st_size for path in (tmp_path / "spool").iterdir()) == 2002


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def test_a_copy_stays_when_another_worker_renames_its_own_away(
    tmp_path: Path, web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "a.txt").write_text("one\n")
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "other.tar").write_bytes(b"x")
    place = RemotePath.parse(f"{web.url}/a.txt")
    listing = os.scandir

    def listed_before(folder: Path) -> Any:
        found = list(listing(folder))
        (tmp_path / "spool" / "other.tar").unlink(missing_ok=True)
        return contextlib.nullcontext(found)

    monkeypatch.setattr("cmcr.cache.remote.os.scandir", listed_before)
    assert place.fetch().read_text() == "one\n"


def test_a_copy_that_was_removed_to_make_room_is_fetched_again(
    tmp_path: Path, web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "a.txt").write_text("one\n")
    place = RemotePath.parse(f"{web.url}/a.txt")
    local = place.fetch()
    touch = os.utime

    def removed_just_before(path: Path) -> None:
        monkeypatch.setattr("cmcr.cache.remote.os.utime", touch)
        path.unlink()
        touch(path)

    monkeypatch.setattr("cmcr.cache.remote.os.utime", removed_just_before)
    assert place.fetch() == local
    assert local.read_text() == "one\n"


@pytest.mark.parametrize("text", ["64 hours", "-1", "nan", "lots"])
def test_a_limit_that_is_no_size_is_refused_before_anything_is_fetched(
    tmp_path: Path, web: Server, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "data" / "a.txt").write_text("one\n")
    monkeypatch.setenv("CMCR_REMOTE_CACHE_BYTES", text)
    with pytest.raises(CacheError, match=f"CMCR_REMOTE_CACHE_BYTES is '{text}'") as caught:
        open_corpus([f"{web.url}/a.txt"], "text")
    assert "64GB" in str(caught.value)
    assert web.handler.asked == []


def test_a_limit_may_have_a_unit(tmp_path: Path, web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMCR_REMOTE_CACHE_BYTES", "2.5KB")
    for name in "abcd":
        (tmp_path / "data" / f"{name}.txt").write_text("x" * 1000 + "\n")
        everything(f"{web.url}/{name}.txt", "text")
    assert names(tmp_path / "spool") == [".txt", ".txt"]


KILLED = """
import os, signal, sys
from cmcr.cache.remote import RemotePath, version_of

def killed(path, local):
    with open(local, "wb") as half:
        half.write(bytes(5000))
    os.kill(os.getpid(), signal.SIGKILL)

place = RemotePath.parse(sys.argv[1])
place.filesystem.get_file = killed
place.fetch()
"""


def test_what_a_killed_worker_fetched_of_a_file_goes_and_costs_no_copy(
    tmp_path: Path, web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCR_REMOTE_CACHE_BYTES", "2500")
    for name in "abc":
        (tmp_path / "data" / f"{name}.txt").write_text("x" * 1000 + "\n")
    RemotePath.parse(f"{web.url}/a.txt").fetch()
    done = subprocess.run([sys.executable, "-c", KILLED, f"{web.url}/b.txt"], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (path for path in (tmp_path / "spool").iterdir() if path.name.startswith("."))
    foreign = left.with_name(left.name.replace(fsio.host_name(), "elsewhere"))  # may be alive: it is left alone
    foreign.write_bytes(left.read_bytes())
    RemotePath.parse(f"{web.url}/c.txt").fetch()
    assert not left.exists()
    assert foreign.exists()
    assert [path.suffix for path in (tmp_path / "spool").iterdir() if path != foreign] == [".txt", ".txt"]


def test_what_a_killed_worker_fetched_of_a_cache_goes(tmp_path: Path, web: Server, finished: Path) -> None:
    mirror = open_cache(f"{web.url}/cache").path
    left = [mirror / folder / f".x.tmp-{fsio.host_name()}-{2**22 + 1}-1" for folder in ("shards", "errors")]
    for file in left:
        file.write_bytes(b"half")
    open_cache(f"{web.url}/cache")
    assert not any(file.exists() for file in left)


def test_a_download_under_way_is_not_swept_by_its_own_process(
    tmp_path: Path, web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "a.txt").write_text("one\n")
    monkeypatch.setattr(fsio, "process_start", lambda pid: 0)  # as on systems without /proc
    place = RemotePath.parse(f"{web.url}/a.txt")
    fetch = place.filesystem.get_file

    def swept(path: str, local: str) -> None:
        fetch(path, local)
        assert fsio.is_temporary(Path(local).name)
        assert fsio.sweep(tmp_path / "spool") == []

    monkeypatch.setattr(place.filesystem, "get_file", swept)
    assert place.fetch().read_text() == "one\n"


def settings(encoder: str, modality: str = "text") -> dict[str, Any]:
    return {"modality": modality, "encoder": f"{FILE}:{encoder}", "shard_size": 16, "batch_size": 4}


def content(cache: Path) -> dict[str, bytes]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.relative_to(cache).parts[0] not in ("runs", "index")]
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in files}


def test_encoding_a_url_gives_the_cache_of_its_local_copy_byte_for_byte(tmp_path: Path, web: Server) -> None:
    fill(tmp_path / "data")
    encode(f"{web.url}/captions.txt", tmp_path / "far", **settings("TextTable"))
    encode(tmp_path / "data" / "captions.txt", tmp_path / "near", **settings("TextTable"))
    assert content(tmp_path / "far") == content(tmp_path / "near")
    again = encode(tmp_path / "data" / "captions.txt", tmp_path / "far", **settings("TextTable"))
    assert (again.shards_now, again.known) == (0, 1000)


def test_files_that_break_off_or_are_refused_are_tried_again_then_lines_of_the_ledger(
    tmp_path: Path, web: Server
) -> None:
    fill(tmp_path / "data")
    web.handler.cut["a.png"] = 2  # the third try is whole
    corpus = open_corpus([f"{web.url}/photos"], "image")
    unit = corpus.plan([], 16).units[0]
    web.handler.cut["a.png"] = 2
    assert [type(found).__name__ for found in corpus.read(unit)] == ["Item", "Item", "Item"]
    web.handler.cut["a.png"] = 99
    with pytest.raises(CorpusError, match="at least one of 3 files"):
        list(corpus.read(unit))
    web.handler.cut.clear()
    web.handler.refused["b.png"] = 403
    refused = open_corpus([f"{web.url}/photos"], "image")
    report = encode(f"{web.url}/photos", tmp_path / "cache", **settings("Pixels", "image"))
    assert (report.rows, report.failed) == (2, 1)
    assert refused.plan([], 16).units[0].rows == 3
    failure = next(iter(open_cache(tmp_path / "cache").failures()))
    assert (failure.key, failure.stage, failure.error) == ("b", "read", "PermissionError")
    assert failure.message == "b.png cannot be read: access is refused: are credentials for this service set?"


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ("{web}/none.txt", CorpusError, r"cannot be read: No such file or directory"),
        ("memory://bucket/none.txt", CorpusError, r"No such file or directory"),
        ("http://127.0.0.1:9/t.txt", CorpusError, "cannot be read: ClientConnectorError: Cannot connect"),
        ("s3://bucket/t.txt", MissingExtraError, r"(?s)s3:// needs a library.*pip install 'cmcr\[remote\]'"),
        ("nosuch://bucket/t.txt", CacheError, "nosuch:// cannot be read: Protocol not known"),
        ("pipe:cat t.txt", CorpusError, "pipes are never run"),
    ],
)
def test_what_cannot_be_had_is_one_clear_error(web: Server, given: str, kind: type[CmcrError], says: str) -> None:
    if given.startswith("s3") and _installed("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(kind, match=says):
        open_corpus([given.replace("{web}", web.url)], "text")


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def test_a_truncated_text_file_is_refused_before_anything_is_planned(tmp_path: Path, web: Server) -> None:
    fill(tmp_path / "data")
    web.handler.cut["captions.txt"] = 99
    with pytest.raises(CorpusError, match=r"captions.txt cannot be opened: "):
        encode(f"{web.url}/captions.txt", tmp_path / "cache", **settings("TextTable"))
    assert not (tmp_path / "cache").exists()
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_cache_is_not_written_to_a_url(tmp_path: Path) -> None:
    fill(tmp_path / "data")
    with pytest.raises(CacheError, match="written to a file system"):
        encode(tmp_path / "data" / "captions.txt", Path("memory://bucket/cache"), **settings("TextTable"))
    assert not Path("memory:").exists()


def grown(source: Path, cache: Path, words: str, refused: str) -> Path:
    """A cache of four shards with a failure and a second plan."""
    source.parent.mkdir(exist_ok=True)
    source.write_text("".join(f"{refused} {i}\n" if i == 20 else f"{words} {i}\n" for i in range(40)))
    encode(source, cache, **settings("TextTable"))
    with source.open("a") as more:
        more.write("".join(f"late {words} {i}\n" for i in range(9)))
    encode(source, cache, **settings("TextTable"))
    return cache


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return grown(tmp_path / "t.txt", tmp_path / "data" / "cache", "caption", "!nan")


def same(far: Cache, near: Cache) -> None:
    assert far.keys() == near.keys()
    assert np.array_equal(far.read(0, len(far)), near.read(0, len(near)))
    assert far.captions([0, len(far) - 1]) == near.captions([0, len(near) - 1])
    assert [f.key for f in far.failures()] == [f.key for f in near.failures()]
    assert np.array_equal(far.gather(near.keys()[::7]), near.gather(near.keys()[::7]))
    assert far.content_id() == near.content_id()


@pytest.mark.parametrize("kind", ["memory", "http", "http without listings"])
def test_a_finished_cache_reads_at_a_url_as_it_does_locally(
    tmp_path: Path, web: Server, finished: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "http without listings":
        monkeypatch.setattr(web.handler, "list_directory", lambda self, path: self.send_error(403))
    upload(finished, "memory://bucket/cache")
    url = f"{web.url}/cache" if kind.startswith("http") else "memory://bucket/cache"
    same(open_cache(url), Cache(finished))
    same(open_cache(Path(url)), Cache(finished))


def test_the_command_line_and_a_recipe_take_the_url_of_a_cache(web: Server, finished: Path, tmp_path: Path) -> None:
    from cmcr.cli import app
    from cmcr.trainer.recipe import load_recipe
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["cache", "info", f"{web.url}/cache", "--json"])
    assert result.exit_code == 0, result.output
    assert f'"rows": {len(Cache(finished))}' in result.output
    file = tmp_path / "recipe.toml"
    file.write_text(f'[space.a]\noverlap = "{web.url}/cache"\n[space.b]\noverlap = "near"\n[fit]\nmethod = "ridge"\n')
    recipe = load_recipe(file)
    assert len(open_cache(recipe.path(recipe.space["a"].overlap))) == len(Cache(finished))
    assert recipe.path("near") == tmp_path / "near"


def test_shards_are_fetched_when_they_are_read_and_once(tmp_path: Path, web: Server, finished: Path) -> None:
    far = open_cache(f"{web.url}/cache")
    shards = [path for path in web.handler.asked if path.endswith(".h5")]
    assert shards == []
    far.read(0, 3)
    far.read(0, 3)
    assert [path for path in web.handler.asked if path.endswith(".h5")] == ["/cache/shards/00000.g0.h5"]
    open_cache(f"{web.url}/cache").read(0, 3)
    assert web.handler.asked.count("/cache/shards/00000.g0.h5") == 1
    copy = far.__reduce__()
    assert isinstance(copy[0](*copy[1]), RemoteCache)


def test_a_remote_cache_that_was_retried_is_read_anew(tmp_path: Path, web: Server, finished: Path) -> None:
    before = open_cache(f"{web.url}/cache")
    assert len(before.keys()) == len(before)
    encode(tmp_path / "t.txt", finished, overwrite=True, **{**settings("TextTable"), "batch_size": 3})
    after = open_cache(f"{web.url}/cache")
    same(after, Cache(finished))
    assert len(list((after.path / "shards").glob("*.h5"))) == len(after.shards)


def test_a_cache_made_anew_is_noticed_where_listings_say_sizes_alone(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmcr.cache.remote.version_of", lambda info: f"size={info['size']}")
    upload(finished, "memory://bucket/cache")
    same(open_cache("memory://bucket/cache"), Cache(finished))
    shutil.rmtree(finished)
    upload(grown(tmp_path / "other" / "t.txt", finished, "Caption", "!zero"), "memory://bucket/cache")
    same(open_cache("memory://bucket/cache"), Cache(finished))


@pytest.mark.parametrize("kind", ["http", "http without listings"])
def test_a_cache_made_anew_at_the_same_url_is_read_anew(
    tmp_path: Path, web: Server, finished: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "http without listings":
        monkeypatch.setattr(web.handler, "list_directory", lambda self, path: self.send_error(403))
    far, old = open_cache(f"{web.url}/cache"), Cache(finished)
    same(far, old)
    kept = open_cache(f"{web.url}/cache")  # reads its files after the change
    old_rows, old_failures = old.read(0, 16), [f.message for f in old.failures()]
    shutil.rmtree(finished)
    grown(tmp_path / "other" / "t.txt", finished, "Caption", "!zero")  # the same names and sizes
    after, new = open_cache(f"{web.url}/cache"), Cache(finished)
    assert after.shards[0].file == far.shards[0].file
    assert after.shards[0].bytes == far.shards[0].bytes
    assert not np.array_equal(old_rows, new.read(0, 16))
    assert old_failures != [f.message for f in new.failures()]
    same(after, new)
    assert [f.message for f in after.failures()] == [f.message for f in new.failures()]
    with pytest.raises(CacheError, match=r"(?s)00000.g0.h5 cannot be fetched.*open the cache again"):
        kept.read(0, 16)  # its own rows or an error, never those of the cache that took its place


def test_a_ledger_that_is_not_what_its_marker_says_is_an_error(web: Server, finished: Path) -> None:
    far = open_cache(f"{web.url}/cache")
    ledger = next(finished.glob("errors/*.jsonl"))
    ledger.write_bytes(ledger.read_bytes().replace(b"t:", b"u:"))
    with pytest.raises(CacheError, match=rf"errors/{ledger.name} cannot be fetched: the download is not whole"):
        list(far.failures())


def test_a_shard_that_does_not_arrive_whole_is_no_rows(tmp_path: Path, web: Server, finished: Path) -> None:
    far = open_cache(f"{web.url}/cache")
    web.handler.cut["00001.g0.h5"] = 99
    with pytest.raises(CacheError, match=r"shards/00001.g0.h5 cannot be fetched"):
        far.read(0, len(far))
    damaged = finished / "shards" / "00002.g0.h5"
    damaged.write_bytes(bytes(len(damaged.read_bytes())))
    with pytest.raises(CacheError, match=r"00002.g0.h5 cannot be fetched: the download is not whole: what came fails"):
        far.key_range(32, 33)
    assert [path.name[:8] for path in (far.path / "shards").glob("*.h5")] == ["00000.g0"]
    with pytest.raises(CacheError, match=r"The cache cannot be read: No such file or directory"):
        open_cache(f"{web.url}/nothing")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("ETag", ('"a1"', '"b2"')),  # s3
        ("mtime", (1.0, 2.0)),  # sftp
        ("blob_id", ("a1", "b2")),  # hf
        ("sha", ("a1", "b2")),  # github
        ("modify", ("20261129101112", "20261129101113")),  # ftp
        ("modificationTime", (1, 2)),  # webhdfs
    ],
)
def test_another_file_of_the_same_size_is_another_version(field: str, values: tuple[Any, Any]) -> None:
    versions = {version_of({"name": "x", "size": 7, "type": "file", field: value}) for value in values}
    assert len(versions) == 2


def test_only_records_of_other_versions_are_fetched_where_the_server_says_versions(
    tmp_path: Path, web: Server, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    read = RemotePath.read_bytes
    monkeypatch.setattr(RemotePath, "read_bytes", lambda self: (asked.append(self.name), read(self))[1])
    upload(finished, "memory://bucket/cache")
    open_cache("memory://bucket/cache")
    records = ["00000.json", "00001.json", "00002.json", "00003.json", "cache.json", "plan-00000.json"]
    assert sorted(asked) == [*records, "plan-00001.json"]
    asked.clear()
    marker = "bucket/cache/shards/00002.json"
    fsspec.filesystem("memory").pipe_file(marker, (finished / "shards" / "00002.json").read_bytes())
    open_cache("memory://bucket/cache")
    assert asked == ["00002.json"]
    open_cache(f"{web.url}/cache")
    asked.clear()
    open_cache(f"{web.url}/cache")  # its listings say names alone
    assert sorted(asked) == [*records, "plan-00001.json"]


def test_the_query_of_an_address_is_sent_and_never_shown(tmp_path: Path, web: Server) -> None:
    (tmp_path / "data" / "t.txt").write_text("one\ntwo\n")
    corpus = open_corpus([f"{web.url}/t.txt?signature=secret"], "text")
    corpus.plan([], 16)
    assert "/t.txt?signature=secret" in web.handler.asked
    assert corpus.roots == {"t.txt": f"{web.url}/t.txt"}
    assert "secret" not in str(RemotePath.parse(f"{web.url}/t.txt?signature=secret").parent)
