"""The command line: each command parses, calls one library function that is just as pleasant from Python, and prints.

Nothing heavy is imported at the top: ``cmcr --help`` answers in under half a second.
"""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any, List, Optional  # noqa: UP035  (Typer reads these at run time on Python 3.10)

import typer

from .cache._version import __version__
from .cache.errors import CmcrError, RecipeError

app = typer.Typer(
    name="cmcr",
    help="Connect frozen contrastive models (CLIP, CLAP, ULIP) without paired data.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="List, inspect, verify and import embedding caches.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Published evaluation protocols over caches.", no_args_is_help=True)
connector_app = typer.Typer(help="Inspect connectors.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(connector_app, name="connector")

Output = Annotated[Path, typer.Option("--output", help="Folder to write.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")]
BatchSize = Annotated[Optional[int], typer.Option("--batch-size", help="Rows at once; halved when memory runs out.")]
Precision = Annotated[str, typer.Option("--precision", help="fp32, or bf16 where the device has it.")]
Workers = Annotated[Optional[int], typer.Option("--workers", help="Decoding threads; default: by the machine.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, results only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --output holds.")]
Encoder = Annotated[Optional[str], typer.Option("--encoder", help="family:model/weights, a short name, or my.py:MyEncoder.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Connect frozen contrastive models (CLIP, CLAP, ULIP) without paired data."""
    if version:
        typer.echo(f"cmcr {__version__}")
        raise typer.Exit
