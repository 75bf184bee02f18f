"""The command line: help that cannot go stale, one clear line for every mistake, true exit codes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cmcr.cli import app
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run():  # type: ignore[no-untyped-def]
    runner = CliRunner()
    return lambda *args: runner.invoke(app, [str(a) for a in args], prog_name="cmcr")


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "v.npy", rng.normal(size=(50, 8)).astype(np.float32))
    return tmp_path / "v.npy"


def write_docs_module():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("write_cli_docs", ROOT / "scripts" / "write_cli_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docs_show_the_help_of_every_command() -> None:
    module = write_docs_module()
    # A process of its own: the width of help texts is read from the environment at import.
    code = (
        f"import runpy; m = runpy.run_path({str(ROOT / 'scripts' / 'write_cli_docs.py')!r}); print(m['page'](), end='')"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == made, "run scripts/write_cli_docs.py"
    registered = {(c.name or c.callback.__name__,) for c in app.registered_commands}
    for group in app.registered_groups:
        registered |= {(group.name, c.name or c.callback.__name__) for c in group.typer_instance.registered_commands}
        registered |= {(group.name,)} if group.typer_instance.info.invoke_without_command is True else set()
    assert registered == set(module.COMMANDS)


def test_mistakes_get_one_message_and_exit_code_one(run, tmp_path: Path, vectors: Path) -> None:  # type: ignore[no-untyped-def]
    mistakes = [
        ("encode", "--modality", "text", "--input", tmp_path / "none.txt", "--output", tmp_path / "c"),
        ("encode", "--modality", "smell", "--input", vectors, "--output", tmp_path / "c"),
        ("fit",),
        ("fit", "--config", tmp_path / "none.toml"),
        ("fit", "--space", "clap", "--method", "c-mcr", "--output", tmp_path / "x"),
        ("cache", "info", tmp_path / "none"),
        ("cache", "ls", tmp_path / "none"),
        ("cache", "import", vectors, "--space", "s", "--output", tmp_path / "c"),
        ("connector", "info", tmp_path),
        ("search", "--connector", tmp_path, "--gallery", tmp_path, "--text", "a dog"),
        ("evaluate", "retrieval", "--query", tmp_path, "--gallery", tmp_path, "--ks", "one"),
        ("demo", "--output", tmp_path / "d", "--size", "huge"),
    ]
    for mistake in mistakes:
        result = run(*mistake)
        assert result.exit_code == 1, (mistake, result.output)
        assert result.output.startswith("error: "), (mistake, result.output)
        assert "Traceback" not in result.output
    assert not (tmp_path / "c").exists(), "a refused command wrote something"


def test_import_info_and_verify_round_trip_as_json(run, tmp_path: Path, vectors: Path) -> None:  # type: ignore[no-untyped-def]
    cache = tmp_path / "cache"
    made = run("cache", "import", vectors, "--space", "clap", "--modality", "audio", "--output", cache, "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)[0]["rows"] == 50
    info = json.loads(run("cache", "info", cache, "--json").stdout)
    assert (info["space_name"], info["modality"], info["dim"]) == ("clap", "audio", 8)
    assert [c["rows"] for c in json.loads(run("cache", "ls", tmp_path, "--json").stdout)] == [50]
    assert run("cache", "verify", cache).exit_code == 0
    shard = next((cache / "shards").glob("*.h5"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 0xFF
    shard.write_bytes(bytes(data))
    broken = run("cache", "verify", cache)
    assert broken.exit_code == 1
    assert "--repair" in broken.output


def test_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, run, vectors: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import cmcr.cache.importer

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cmcr.cache.importer, "import_npy", interrupted)
    result = run("cache", "import", vectors, "--space", "s", "--modality", "text", "--output", tmp_path / "c")
    assert result.exit_code == 130
    assert "run the same command again" in result.output


def test_version_is_the_one_of_the_package(run) -> None:  # type: ignore[no-untyped-def]
    import cmcr

    assert run("--version").stdout.strip() == f"cmcr {cmcr.__version__}"
