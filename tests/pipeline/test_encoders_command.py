"""``cmcr encoders``, ``cmcr encoders check`` and ``cmcr doctor``: true of this machine, without network."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.errors import EncoderError, MissingWeightsError
from cmcr.cli import app
from cmcr.pipeline import doctor
from cmcr.pipeline.encoders import registry
from cmcr.pipeline.encoders.base import MODALITIES, Modality
from cmcr.pipeline.encoders.check import check, sample
from cmcr.pipeline.encoders.listing import list_encoders
from cmcr.pipeline.encoders.registry import SHORT_NAMES, families
from cmcr.pipeline.machine_lines import doctor_lines, listing_lines
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home" / "hub"


def put(hub: Path, repo: str, file: str) -> None:
    """A file in the hub's cache as its client lays it down."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / ("a" * 40) / file).write_bytes(b"x")


def test_the_list_names_every_family_and_short_name() -> None:
    listing = list_encoders()
    assert {line.name for line in listing.families} == set(families())
    assert set(SHORT_NAMES) <= {line.name for line in listing.encoders}
    text = "\n".join(listing_lines(listing))
    assert "cmcr encoders pull clip clap ulip2" in text
    assert "605.0 MB" in text
    ready = {line.name for line in listing.encoders if line.ready}
    assert {"sandbox:clip", "sandbox:clap", "sandbox:ulip"} <= ready
    assert not {"clip", "clap", "ulip2"} & ready


def test_weights_that_are_here_are_known_and_half_an_encoder_is_not_ready(empty_cache: Path) -> None:
    put(empty_cache, "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")
    put(empty_cache, "lukewys/laion_clap", "630k-fusion-best.pt")
    lines = {line.name: line for line in list_encoders().encoders}
    assert lines["clip"].ready
    assert lines["clap"].missing == ("tokenizer of roberta-base",)
    assert "cmcr encoders pull clap ulip2" in "\n".join(listing_lines(list_encoders()))


def test_a_family_that_is_not_installed_has_one_command_that_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = registry.find_spec
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "sentence_transformers" else real(name))
    listing = list_encoders()
    line = next(line for line in listing.families if line.name == "sentence")
    assert (line.installed, line.install) == (False, "pip install 'cmcr[sentence]'")
    assert "add it: pip install 'cmcr[sentence]'" in "\n".join(listing_lines(listing))
    assert not next(one for one in listing.encoders if one.name.startswith("sentence:")).ready


def test_listing_imports_nothing_heavy_and_asks_no_network() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('the network was asked')\n"
        "socket.create_connection = refuse; socket.getaddrinfo = refuse\n"
        "from cmcr.pipeline.encoders.listing import list_encoders\n"
        "list_encoders()\n"
        "heavy = {'torch', 'open_clip', 'laion_clap', 'transformers', 'sentence_transformers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


@pytest.mark.parametrize("modality", MODALITIES)
def test_each_modality_has_a_real_sample_that_the_sandbox_encodes(modality: Modality) -> None:
    name = {"text": "sandbox:clap", "image": "sandbox:clip", "audio": "sandbox:clap", "pointcloud": "sandbox:ulip"}
    (done,) = check(name[modality], modality=modality, device="cpu")
    dims = {"text": 64, "image": 96, "audio": 64, "pointcloud": 80}
    assert (done.modality, done.dim) == (modality, dims[modality])
    assert done.rate > 0
    assert len(done.fingerprint) == 32
    again = sample(modality)
    assert again.data == sample(modality).data


def test_check_tries_every_tower_and_says_what_each_is() -> None:
    done = check("sandbox:ulip", device="cpu")
    assert [one.modality for one in done] == ["pointcloud", "image"]
    assert len({one.space_id for one in done}) == 1
    result = CliRunner().invoke(app, ["encoders", "check", "sandbox:clip", "--modality", "text", "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)[0]
    assert record["space"] == "sandbox-clip"


def test_check_refuses_vectors_that_are_not_of_unit_length(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(
        "import numpy as np\n"
        "from cmcr.pipeline.encoders.base import Space\n"
        "class Long:\n"
        "    name = 'long'; modality = 'text'; space = Space('s', 's'); dim = 3\n"
        "    def fingerprint(self): return 'f'\n"
        "    def decode(self, item): return item.data\n"
        "    def encode(self, batch): return np.full((len(batch), 3), 2, np.float32)\n"
    )
    with pytest.raises(EncoderError, match=r"has length 3\.4641, not 1"):
        check(f"{tmp_path / 'my.py'}:Long", device="cpu")


@pytest.mark.parametrize(
    ("name", "modality", "says"),
    [
        ("clip", "text", "not on this machine"),
        ("clip", "audio", "open_clip has no audio tower"),
        ("clpi", None, "did you mean clip?"),
        ("sentence:nobody/nothing", None, "nobody/nothing is not on this machine"),
    ],
)
def test_what_is_wrong_is_one_message(name: str, modality: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((EncoderError, MissingWeightsError), match=says.replace("?", r"\?")):
        check(name, modality=modality, device="cpu")


def test_doctor_says_what_is_here_and_what_to_type_next() -> None:
    start = time.process_time()
    diagnosis = doctor.diagnose()
    assert time.process_time() - start < 5
    looked_at = {finding.what for finding in diagnosis.findings}
    assert {"Python", "torch", "device", "threads", "faiss", "h5py", "soundfile", "disk for weights"} <= looked_at
    offline = {name: ready for name, ready, _ in diagnosis.encoders}
    assert offline["sandbox:clap"]
    assert not offline["clip"]
    assert any(line.startswith("cmcr encoders pull clip") for line in diagnosis.next)
    assert diagnosis.next[-1].startswith("cmcr demo")
    assert any("soundfile" in line and "flac" in line for line in doctor_lines(diagnosis))


def test_doctor_names_what_would_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    both = {"faiss-cpu": "1", "faiss-gpu": "1"}
    monkeypatch.setattr(doctor, "_version", lambda name: both.get(name) or real(name))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 10**9})())
    diagnosis = doctor.diagnose()
    broken = {finding.what: finding.todo for finding in diagnosis.findings if not finding.ok}
    assert "uninstall one" in str(broken["faiss"])
    assert "HF_HOME" in str(broken["disk for weights"])
    assert not diagnosis.ok
    assert diagnosis.next[0] == broken["faiss"]


def test_doctor_and_encoders_print_json() -> None:
    for command in (["doctor", "--json"], ["encoders", "--json"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["encoders"]
