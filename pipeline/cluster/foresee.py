"""What a command would do, asked of the command itself: its own dry run, in a process of its own.

So flags, inputs, caches and weights are checked by the very code that the tasks will run, before anything is queued.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.errors import CmcrError, RecipeError
from ..stopping import signal_name

COMMANDS = ("encode", "complete", "project", "fit")


@dataclass(frozen=True)
class Foreseen:
    """What the dry run of a command says.

    Parameters
    ----------
    output : Path
        What it writes; absolute.
    shards : int
        Shards to do; 1 for a fit.
    record : mapping
        All that it says.
    """

    output: Path
    shards: int
    record: dict[str, Any]


def command_words(command: str | Sequence[str]) -> list[str]:
    """The words of a command, without ``cmcr``; held against what a job array can run.

    Raises
    ------
    RecipeError
    """
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    words = words[1:] if words[:1] == ["cmcr"] else words
    usage = "cmcr submit --tasks 8 -- encode --modality text --input captions.txt --output caches/captions"
    if not words:
        raise RecipeError("no command is given", where="after --", todo=usage)
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        raise RecipeError(
            f"cmcr submit runs {', '.join(COMMANDS[:-1])} or {COMMANDS[-1]}, not {words[0]!r}",
            where="after --",
            todo=f"did you mean {near[0]}?" if near else usage,
        )
    for flag, why in _REFUSED.items():
        if flag in words:
            raise RecipeError(f"{flag} cannot be submitted: {why[0]}", where="after --", todo=why[1])
    following = [*words[1:], ""]
    pairs = [f"{word}={after}" if word == "--worker" else word for word, after in zip(words, following, strict=True)]
    if any(pair.startswith("--worker=") and pair != "--worker=auto" for pair in pairs):
        raise RecipeError(
            "every task would be the same worker",
            where="--worker",
            todo="leave it out: tasks share the shards by leases; or --worker auto",
        )
    return words


def is_split_by_number(words: Sequence[str]) -> bool:
    """Whether each task does the shards of its number; :func:`command_words` lets no other ``--worker`` pass."""
    return "--worker" in words or "--worker=auto" in words


_REFUSED = {
    "--dry-run": ("it belongs before the two dashes", "cmcr submit --dry-run --tasks N -- ..."),
    "--overwrite": (
        "a task that comes late, or a second time, would take back what the others did",
        "remove the output first, or choose another one",
    ),
}


def foresee(words: Sequence[str], tasks: int = 1) -> Foreseen:
    """Run the command's dry run on the CPU of this machine.

    Raises
    ------
    CmcrError
        Whatever the command says against its flags, inputs and weights, in its own words; or that a signal ended it.
    KeyboardInterrupt
        Ctrl-C ended it.
    """
    end = words.index("--") if "--" in words else len(words)
    environment = dict(os.environ)
    if any(word.partition("=")[0] == "--devices" for word in words[:end]):  # which excludes --device
        cpu, environment["CUDA_VISIBLE_DEVICES"] = [], ""
    else:
        cpu = ["--device", "cpu"]
    asked = [*words[:end], "--dry-run", "--json", *cpu, *words[end:]]
    if is_split_by_number(words):
        environment |= {"RANK": "0", "WORLD_SIZE": str(tasks)}
    done = subprocess.run(
        [sys.executable, "-m", "cmcr", *asked], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode in (-signal.SIGINT, 128 + signal.SIGINT):
        raise KeyboardInterrupt
    if done.returncode < 0:
        raise CmcrError(
            f"the dry run of the command was ended by {signal_name(-done.returncode)}",
            where=shlex.join(["cmcr", *asked]),
            todo="try it by hand; it loads the encoder, and SIGKILL mostly means that memory ran out: submit from a "
            "machine, or in an interactive job, that has more",
        )
    if done.returncode != 0:
        raise _as_error(done.stderr, words)
    record: dict[str, Any] = json.loads(done.stdout)
    shards = 1 if words[0] == "fit" else int(record["shards_now"])
    if not record.get("output"):
        raise RecipeError("the fit names no output folder", where="after --", todo="add --output FOLDER")
    return Foreseen(Path(record["output"]).absolute(), shards, record)


def _as_error(said: str, words: Sequence[str]) -> CmcrError:
    """What a command printed as it failed, as the error that it was."""
    lines = [line.rstrip() for line in said.strip().splitlines()]
    for number, line in reversed(list(enumerate(lines))):
        if line.lower().startswith("error: "):
            fields = {"where": "", "next": ""}
            for more in lines[number + 1 :]:
                name, _, value = more.strip().partition(":")
                if name in fields:
                    fields[name] = value.strip()
            usage = f"cmcr {words[0]} --help" if line.startswith("Error: ") else None
            return CmcrError(line[7:], where=fields["where"] or None, todo=fields["next"] or usage)
    return CmcrError(lines[-1] if lines else f"cmcr {words[0]} fails without a word", where=f"cmcr {words[0]}")
