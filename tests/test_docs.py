"""README and docs are executed: a command that does not run as printed fails here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cmcr.cli import app
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]


def blocks(language: str, text: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """Words of each ``$`` line, continued lines joined."""
    joined = block.replace("\\\n", " ")
    return [shlex.split(line[2:], comments=True) for line in joined.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of README's tour has run."""
    place = tmp_path_factory.mktemp("tour")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (place / "connect.toml").write_text(blocks("toml", readme)[0], encoding="utf-8")
    runner = CliRunner()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for block in blocks("console", readme):
            for words in commands(block):
                assert words[0] == "cmcr"
                result = runner.invoke(app, words[1:], prog_name="cmcr")
                assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}\n{result.exception!r}"
    return place


def test_every_command_of_the_readme_runs_as_printed(tour: Path) -> None:
    assert (tour / "connectors" / "clap-clip" / "connector.safetensors").exists()
    assert (tour / "hits.png").stat().st_size > 10_000
    assert (tour / "caches" / "images-shared" / "cache.json").exists()


def test_python_of_the_readme_runs_as_printed(tour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tour)
    (code,) = blocks("python", (ROOT / "README.md").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["sound"].shape == (1, 128)  # type: ignore[attr-defined]


def test_a_fit_leaves_every_file_that_the_docs_name(tour: Path) -> None:
    folder = tour / "connectors" / "clap-clip"
    made = {path.name for path in folder.iterdir()}
    assert {"connector.safetensors", "config.json", "metrics.jsonl", "curve.png", "tensorboard", "README.md"} <= made


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"
