"""README is executed, and every command of the docs is held against the parser: nothing printed can go stale."""

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


def test_job_arrays_of_the_docs_run_as_printed(tour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tour)
    printed = [
        words for block in blocks("console", (ROOT / "docs" / "cluster.md").read_text()) for words in commands(block)
    ]
    assert [words[1] for words in printed] == ["submit", "submit", "status"]
    for words in printed:
        result = CliRunner().invoke(app, words[1:], prog_name="cmcr")
        assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}\n{result.exception!r}"
    assert "10 of 10 shards done" in result.output


def test_a_fit_leaves_every_file_that_the_docs_name(tour: Path) -> None:
    folder = tour / "connectors" / "clap-clip"
    made = {path.name for path in folder.iterdir()}
    assert {"connector.safetensors", "config.json", "metrics.jsonl", "curve.png", "tensorboard", "README.md"} <= made


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def printed_commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command in a code block of the docs, and of what the demo says to type next."""
    found = []
    pages = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "pipeline" / "templates" / "next.txt"]
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        if page.name == "cli.md":
            continue
        for line in text.splitlines():
            if line.count("`") != 2 * line.strip().endswith("`"):
                continue  # prose that begins with a command's name
            bare = line.strip().removeprefix("$ ").strip("`")
            if bare.startswith("cmcr ") and "…" not in bare and "..." not in bare:
                words = shlex.split(bare, comments=True)
                found.append((page.name, words))
                if "--" in words:  # the command that cmcr submit runs
                    found.append((page.name, ["cmcr", *words[words.index("--") + 1 :]]))
    return found


def test_every_command_that_the_docs_print_exists_with_its_options() -> None:
    """Commands of the docs stand for files of the reader's, so they are checked against the parser instead of run."""
    import typer.main

    checked = 0
    for page, words in printed_commands():
        command = typer.main.get_command(app)
        rest = words[1:]
        while hasattr(command, "commands") and rest:
            assert rest[0] in command.commands, f"{page}: no command {' '.join(words[:3])}"
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        rest = rest[: rest.index("--")] if "--" in rest else rest
        used = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert used <= known, f"{page}: {' '.join(words)} has unknown options {sorted(used - known)}"
        checked += 1
    assert checked >= 10, "the commands of the docs were not found"
