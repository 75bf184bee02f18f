"""Write docs/cli.md from the help texts of the commands; a test compares the two."""

from __future__ import annotations

import os
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
COMMANDS = (
    ("demo",),
    ("encode",),
    ("complete",),
    ("fit",),
    ("compare",),
    ("report",),
    ("project",),
    ("search",),
    ("evaluate", "retrieval"),
    ("evaluate", "classification"),
    ("evaluate", "localization"),
    ("evaluate", "counterfactual"),
    ("evaluate", "regions"),
    ("evaluate", "prompts"),
    ("evaluate", "prepare"),
    ("evaluate", "recipe"),
    ("evaluate", "damage"),
    ("cache", "ls"),
    ("cache", "info"),
    ("cache", "verify"),
    ("cache", "import"),
    ("cache", "export"),
    ("connector", "info"),
    ("connector", "import"),
    ("connector", "export"),
    ("connector", "chain"),
    ("encoders",),
    ("encoders", "check"),
    ("encoders", "pull"),
    ("submit",),
    ("status",),
    ("retry",),
    ("doctor",),
)
HEAD = """# Commands

Every command calls one function of the package and prints what it returns; `--json` prints the same as JSON. Errors go
to standard error with what happened, where, and what to do next. Exit codes: 0 done, 1 an error or a cache that is not
sound, 2 a command line that cannot be read, 3 (`cmcr status`) work that still goes on, 130 interrupted (what is written
stays: the same command goes on).

This page is made from the help texts by `scripts/write_cli_docs.py`.
"""


def page() -> str:
    """The whole page."""
    os.environ.update(COLUMNS="100", TERMINAL_WIDTH="100", NO_COLOR="1")
    from cmcr.cli import app
    from typer.testing import CliRunner

    runner = CliRunner()
    parts = [HEAD]
    for command in COMMANDS:
        result = runner.invoke(app, [*command, "--help"], prog_name="cmcr")
        if result.exit_code != 0:
            raise SystemExit(f"cmcr {' '.join(command)} --help failed: {result.output}")
        text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        parts.append(f"## cmcr {' '.join(command)}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    DOCS.write_text(page(), encoding="utf-8")
    print(f"wrote {DOCS.relative_to(DOCS.parents[1])}")
