"""The command line: each command parses, calls one library function that is just as pleasant from Python, and prints.

Nothing heavy is imported at the top: ``cmcr --help`` answers in under half a second.
"""

from __future__ import annotations

import json as jsonlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from .cache._version import __version__
from .cache.errors import CmcrError, PeerError, RecipeError


class _Commands(typer.core.TyperGroup):
    """Errors of any command become one message and a true exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PeerError:  # of several processes another one says why
            sys.exit(1)
        except CmcrError as error:
            _say(f"error: {error}")
            sys.exit(1)
        except KeyboardInterrupt:
            _say("interrupted; what is written stays: run the same command again to go on")
            sys.exit(130)


app = typer.Typer(
    name="cmcr",
    cls=_Commands,
    help="Connect frozen contrastive models (CLIP, CLAP, ULIP) without paired data.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="List, inspect, verify and import embedding caches.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Published evaluation protocols over caches.", no_args_is_help=True)
connector_app = typer.Typer(help="Inspect, import, export and chain connectors.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(connector_app, name="connector")
encoders_app = typer.Typer(help="List, check and fetch encoders.", invoke_without_command=True)
app.add_typer(encoders_app, name="encoders")

Output = Annotated[Path, typer.Option("--output", help="Folder to write.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Rows at once.")]
Precision = Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, results only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --output holds.")]
Encoder = Annotated[
    str | None, typer.Option("--encoder", help="family:model/weights, a short name, or my.py:MyEncoder.")
]


Connector = Annotated[Path, typer.Option("--connector", help="Connector folder.")]
CachePath = Annotated[Path, typer.Argument(help="The cache.")]
Tasks = Annotated[int, typer.Option("--tasks", help="Tasks of the array; they share the shards.")]
Gpus = Annotated[int, typer.Option("--gpus", help="GPUs of a task.")]
Partition = Annotated[str, typer.Option("--partition", help="Partition to queue in.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the tasks, then print the status.")]
ResultFile = Annotated[Path | None, typer.Option("--output", help="Also write the result as a JSON file.")]
SkipExisting = Annotated[bool, typer.Option("--skip-existing", help="Keep the result file of this very run.")]
Overlays = Annotated[Path | None, typer.Option("--overlays", help="Folder for pictures of the first frames.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Connect frozen contrastive models (CLIP, CLAP, ULIP) without paired data."""
    if version:
        typer.echo(f"cmcr {__version__}")
        raise typer.Exit


@app.command()
def demo(
    output: Output,
    seed: Seed = 0,
    size: Annotated[str, typer.Option("--size", help="full, or small for a first look in seconds.")] = "full",
    only_corpora: Annotated[bool, typer.Option("--only-corpora", help="Write the sandbox corpora and stop.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run the whole job in the sandbox world and leave a report: audio to image, and 3D to text."""
    from .pipeline.demo.page import demo_lines
    from .pipeline.demo.run import demo as run

    say = None if quiet or json else _say
    result = run(output, seed=seed, size=size, only_corpora=only_corpora, overwrite=overwrite, say=say)
    _show(demo_lines(result), result.to_json(), json)


@app.command()
def encode(
    modality: Annotated[str, typer.Option("--modality", help="text, image, audio or pointcloud.")],
    output: Output,
    input: Annotated[list[str], typer.Option("--input", help="Text file, table, folder, glob or tars; may repeat.")],
    more: Annotated[list[str] | None, typer.Argument(help="More inputs, as a shell leaves them.")] = None,
    encoder: Encoder = None,
    key_column: Annotated[str | None, typer.Option("--key-column", help="Column of a table with the key.")] = None,
    caption_column: Annotated[str | None, typer.Option("--caption-column", help="Column with the caption.")] = None,
    path_column: Annotated[str | None, typer.Option("--path-column", help="Column with the media file.")] = None,
    pattern: Annotated[str | None, typer.Option("--pattern", help="Only files of a folder that match.")] = None,
    tar_key: Annotated[str, typer.Option("--tar-key", help="A key ends at the first-dot or last-dot.")] = "first-dot",
    device: Device = "auto",
    devices: Annotated[
        str | None, typer.Option("--devices", help="A worker each: auto (every GPU here), cuda:0,cuda:1 or cpu*2.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Items at once; halved when memory runs out.")] = 64,
    precision: Precision = "fp32",
    workers: Annotated[
        int, typer.Option("--workers", help="Threads that decode (0: by the machine); with --worker: how many workers.")
    ] = 0,
    worker: Annotated[
        str | None, typer.Option("--worker", help="Every N-th shard, from I on; auto: by RANK, SLURM_PROCID, ...")
    ] = None,
    shard_size: Annotated[int, typer.Option("--shard-size", help="Rows in a shard.")] = 8192,
    dtype: Annotated[str, typer.Option("--dtype", help="Stored type: float16 or float32.")] = "float16",
    overwrite: Overwrite = False,
    accept_fingerprint: Annotated[
        bool, typer.Option("--accept-fingerprint", help="Go on although the encoder is not the one of the cache.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Encode shards with failures again.")] = False,
    max_failure_rate: Annotated[
        float, typer.Option("--max-failure-rate", help="Stop beyond this share of failed items.")
    ] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan, disk and time; write nothing.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Encode a corpus into a cache; run it again to resume or append, several times at once to share the work."""
    settings = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
    from .pipeline import terminal
    from .pipeline.encode import encode as run
    from .pipeline.encode import plan_encode
    from .pipeline.progress import RichProgress
    from .pipeline.stopping import stopping

    if worker is not None:
        from .pipeline.cluster.ranks import worker_of

        settings["worker"], settings["workers"] = worker_of(worker, workers, os.environ)
    inputs = [*input, *(more or ())]
    if dry_run:
        plan = plan_encode(inputs, output, **settings)
        _show(terminal.dry_run_lines(plan), plan.to_json(), json)
        return
    with stopping() as stop, _maybe(quiet or json, lambda: RichProgress(f"encode {modality}")) as progress:
        report = run(inputs, output, progress=progress, stop=stop, **settings)
    _show(terminal.encode_lines(report), report.to_json(), json)
    _left(report.unfinished, stop)


_NOT_SETTINGS = {"output", "input", "more", "dry_run", "quiet", "json"}


@app.command()
def complete(
    query: Annotated[Path, typer.Option("--query", help="Cache of the overlapping modality.")],
    bank: Annotated[list[Path], typer.Option("--bank", help="Memory bank of the same space; may repeat.")],
    output: Output,
    tau: Annotated[str, typer.Option("--tau", help="Temperature of the softmax over the bank, or auto.")] = "0.01",
    search: Annotated[str, typer.Option("--search", help="exact, auto, topk, ivf or hnsw.")] = "exact",
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="How far a unit vector may be off where a row is not exact.")
    ] = 1e-3,
    precision: Annotated[
        str, typer.Option("--precision", help="fp32, or bf16 products in place of exact ones.")
    ] = "fp32",
    bank_rows: Annotated[int | None, typer.Option("--bank-rows", help="Use a seeded sample of the bank.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Complete every row of a cache by the softmax-weighted retrieval from a memory bank; run it again to go on."""
    from .pipeline import terminal
    from .pipeline.progress import CountBar
    from .pipeline.stopping import stopping
    from .trainer.completed_cache import complete as run
    from .trainer.completed_cache import plan_complete

    settings: dict[str, Any] = {
        "search": search, "tolerance": tolerance, "precision": precision, "bank_rows": bank_rows, "seed": seed,
        "device": device,
    }  # fmt: skip
    if dry_run:
        plan = plan_complete(query, bank, output, tau, **settings)
        _show(terminal.derived_plan_lines(plan), plan.to_json(), json)
        return
    with stopping() as stop, _maybe(quiet or json, lambda: CountBar("complete")) as progress:
        report = run(query, bank, output, tau, overwrite=overwrite, progress=progress, stop=stop, **settings)
    _show(terminal.completion_lines(report), report, json)
    _left(report.unfinished, stop)


def _left(unfinished: int, stop: Any) -> None:
    """Say that a run was asked to stop before the end, and end as the signal would have."""
    if unfinished:
        _say(f"stopped with {unfinished} shards to do; run the same command again to go on")
        raise typer.Exit(stop.exit_code)


@app.command()
def fit(
    config: Annotated[Path | None, typer.Option("--config", help="A recipe (TOML).")] = None,
    set: Annotated[list[str] | None, typer.Option("--set", help="Override, as in fit.lr=3e-4; may repeat.")] = None,
    space: Annotated[
        list[str] | None, typer.Option("--space", help="NAME=OVERLAP,BANK; twice, without --config.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="weave, c-mcr, ex-mcr, bridge, ridge, procrustes, identity, my.py:M.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder of the connector.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the overlap (36).")] = None,
    batch_size: BatchSize = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate (1e-3).")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, or bf16 for the projectors.")] = None,
    memory_budget: Annotated[
        str | None, typer.Option("--memory-budget", help="For vectors on a GPU, as in 2GB.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", help="Space that stays as it is; the other maps into it.")
    ] = None,
    projector: Annotated[
        str | None, typer.Option("--projector", help="mlp, half or linear (mlp); --set for one each.")
    ] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="cosine, linear or constant (cosine).")] = None,
    warmup: Annotated[float | None, typer.Option("--warmup", help="Steps, or a share of them below 1 (0).")] = None,
    clip_grad: Annotated[float | None, typer.Option("--clip-grad", help="Largest norm of the gradient.")] = None,
    chunk: Annotated[int | None, typer.Option("--chunk", help="Rows whose logits are held at a time.")] = None,
    patience: Annotated[int | None, typer.Option("--patience", help="Looks at [validation] without a gain.")] = None,
    validate_every: Annotated[int | None, typer.Option("--validate-every", help="Steps between two looks.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan, sizes and time; write nothing.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Fit a connector on cached vectors, from a recipe or from flags; run it again to resume. Works under torchrun."""
    from .pipeline import terminal
    from .pipeline.fit_progress import FitBar
    from .pipeline.recipe_evals import evaluate_recipe
    from .trainer.allocator import keep_freed_memory
    from .trainer.fit import fit as run
    from .trainer.recipe import Recipe, load_recipe
    from .trainer.rendezvous import joined

    keep_freed_memory()
    given: dict[str, Any] = {
        "method": method, "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "device": device,
        "precision": precision, "memory_budget": memory_budget, "keep": keep, "projector": projector,
        "schedule": schedule, "warmup": warmup, "clip_grad": clip_grad, "chunk": chunk, "patience": patience,
        "validate_every": validate_every,
    }  # fmt: skip
    with joined() as ranks:
        if (config is None) == (not space):
            what = "A fit takes a recipe or two spaces" + (", not both." if config else "; neither is given.")
            raise RecipeError(what, todo="--config FILE, or --space twice with --method")
        recipe = load_recipe(config, set or ()) if config else Recipe.from_flags(space or (), set or (), **given)
        overrides = given if config else {}
        if dry_run:
            if ranks.leads:
                from .trainer.plan_fit import plan_fit

                plan = plan_fit(recipe, output=output, overwrite=overwrite, **overrides)
                _show(terminal.plan_lines(plan), plan.to_json(), json)
            return
        with _maybe(quiet or json or not ranks.leads, FitBar) as progress:
            say = None if progress is None else progress.say
            result = run(recipe, output=output, overwrite=overwrite, progress=progress, say=say, **overrides)
        if not ranks.leads:
            return
        evals = evaluate_recipe(result.recipe, result.folder)
    record = {
        "connector": str(result.folder),
        "metrics": dict(result.metrics),
        "seconds": result.seconds,
        "evaluation": evals.to_json() if evals else {},
    }
    _show([*terminal.fit_lines(result), *evals.tables()], record, json)


@app.command()
def compare(
    config: Annotated[Path, typer.Option("--config", help="A recipe (TOML) with [[eval]] sets.")],
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names, as in c-mcr,bridge; or of [compare.NAME] tables.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Fits of each method, seeds from 0.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of connectors and tables; compare/ beside the recipe.")
    ] = None,
    set: Annotated[list[str] | None, typer.Option("--set", help="As in compare.c-mcr.lr=3e-4; may repeat.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Fit methods side by side and evaluate each; run it again to resume. Exit code 1 when a method failed."""
    from .pipeline.compare import compare as run
    from .pipeline.progress import CountBar
    from .trainer.allocator import keep_freed_memory
    from .trainer.recipe import load_recipe

    keep_freed_memory()
    recipe = load_recipe(config, set or ())
    names = [name.strip() for name in methods.split(",")] if methods else None
    say = None if quiet or json else _say
    with _maybe(quiet or json, lambda: CountBar("fit")) as progress:
        made = run(recipe, methods=names, seeds=seeds, output=output, overwrite=overwrite, progress=progress, say=say)
    _show([*made.tables(), f"also as text, CSV, LaTeX and JSON: {made.folder}/comparison.*"], made.to_json(), json)
    if not made.ok:
        raise typer.Exit(1)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders with result files below them, or such files.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", help="The page (.html); report.html in the first folder. A CSV stands beside it."),
    ] = None,
    material: Annotated[
        list[Path] | None, typer.Option("--material", help="More folders with caches and connectors; may repeat.")
    ] = None,
    examples: Annotated[int, typer.Option("--examples", help="Queries shown with their neighbours; 0: none.")] = 6,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Figures only.")] = False,
    json: Json = False,
) -> None:
    """Compare many evaluations on one page (HTML, CSV). Exit code 1 when a result file could not be read."""
    from .pipeline.reporting.run import report as run

    made = run(results, output=output, material=material or (), examples=examples, pictures=not no_pictures)
    _show(made.lines(), made.to_json(), json)
    if not made.ok:
        raise typer.Exit(1)


@app.command()
def project(
    connector: Connector,
    input: Annotated[Path, typer.Option("--input", help="Cache of one of the connector's spaces.")],
    output: Output,
    batch_size: BatchSize = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")] = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Project a cache into the shared space; run it again when the cache has grown."""
    from .pipeline import terminal
    from .pipeline.progress import CountBar
    from .pipeline.project import plan_project
    from .pipeline.project import project as run
    from .pipeline.stopping import stopping

    settings: dict[str, Any] = {"device": device} | ({} if batch_size is None else {"batch_size": batch_size})
    if dry_run:
        plan = plan_project(connector, input, output, **settings)
        _show(terminal.derived_plan_lines(plan), plan.to_json(), json)
        return
    with stopping() as stop, _maybe(quiet or json, lambda: CountBar("project")) as progress:
        report = run(connector, input, output, overwrite=overwrite, progress=progress, stop=stop, **settings)
    _show(terminal.project_lines(report), report, json)
    _left(report.unfinished, stop)


@app.command()
def search(
    connector: Connector,
    gallery: Annotated[Path, typer.Option("--gallery", help="Cache to search: raw, or projected by the connector.")],
    text: Annotated[list[str] | None, typer.Option("--text", help="Ask with words; may repeat.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="Ask with a picture; may repeat.")] = None,
    audio: Annotated[list[Path] | None, typer.Option("--audio", help="Ask with a sound; may repeat.")] = None,
    points: Annotated[list[Path] | None, typer.Option("--points", help="Ask with a point cloud; may repeat.")] = None,
    query: Annotated[Path | None, typer.Option("--query", help="Ask with the rows of a cache.")] = None,
    key: Annotated[list[str] | None, typer.Option("--key", help="Only these rows of --query; may repeat.")] = None,
    vectors: Annotated[
        Path | None, typer.Option("--vectors", help="Ask with a .npy, of --space or of the shared space.")
    ] = None,
    mix: Annotated[
        list[str] | None, typer.Option("--mix", help="Weighted: 'audio:rain.wav + text:at night*0.5 - text:people'.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", help="Only rows whose meta fulfils 'FIELD >= VALUE'; may repeat.")
    ] = None,
    key_pattern: Annotated[str | None, typer.Option("--key-pattern", help="Only keys like this: 'day/*'.")] = None,
    caption_contains: Annotated[
        str | None, typer.Option("--caption-contains", help="Only rows with these words in the caption.")
    ] = None,
    no_duplicates: Annotated[
        float | None, typer.Option("--no-duplicates", help="Pass over hits this close (cosine) to a better one.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Hits for each query.")] = 10,
    index: Annotated[str, typer.Option("--index", help="kept, exact, or made first: auto, hnsw, ivf.")] = "kept",
    memory_budget: Annotated[
        str | None, typer.Option("--memory-budget", help="For an index that auto makes, as in 2GB.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="Cache of queries to measure its recall on.")
    ] = None,
    space: Annotated[str | None, typer.Option("--space", help="Where two spaces have the modality.")] = None,
    encoder: Encoder = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Also draw a contact sheet (PNG).")] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Also write a page (HTML) with sounds to play.")] = None,
    output_format: Annotated[str, typer.Option("--format", help="table, json, jsonl or csv.")] = "table",
    json: Json = False,
) -> None:
    """Search a gallery by text, picture, sound, point cloud, vectors, a mix of them or a cache of queries."""
    from .pipeline.search import search as run
    from .pipeline.searching.outputs import checked_format, printed, write_pictures

    shape = checked_format("json" if json else output_format)
    asked: dict[str, Any] = {
        "text": text,
        "image": image,
        "audio": audio,
        "points": points,
        "query": query,
        "key": key,
        "mix": mix,
    }
    asked |= {"vectors": vectors, "where": where, "key_pattern": key_pattern, "caption_contains": caption_contains}
    given: Any = {
        name: value for name, value in {**asked, "no_duplicates": no_duplicates}.items() if value not in (None, [])
    }
    result = run(
        connector, gallery, k=k, space=space, encoder=encoder, device=device, index=index, memory_budget=memory_budget,
        held_out=held_out, **given,
    )  # fmt: skip
    if shape in ("jsonl", "csv"):
        typer.echo(printed(result, shape), nl=False)
        for note in result.notes:
            _say(note)
    else:
        _show([result.table(), *result.notes], result.to_json(), shape == "json")
    for line in write_pictures(result, sheet, page):
        _say(line)


@evaluate_app.command("retrieval")
def evaluate_retrieval(
    query: Annotated[Path, typer.Option("--query", help="Cache of queries.")],
    gallery: Annotated[Path, typer.Option("--gallery", help="Cache of what is looked for.")],
    connector: Annotated[
        Path | None, typer.Option("--connector", help="Connector folder; none within one space.")
    ] = None,
    pairs: Annotated[Path | None, typer.Option("--pairs", help="CSV: query key, gallery key.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Field of /meta; equal values are relevant.")] = None,
    ks: Annotated[str, typer.Option("--ks", help="Cut-offs of recall.")] = "1,5,10",
    ties: Annotated[str, typer.Option("--ties", help="expected, or optimistic.")] = "expected",
    output: ResultFile = None,
    skip_existing: SkipExisting = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")] = None,
    json: Json = False,
) -> None:
    """Recall, mAP and ranks, both directions; equal keys are relevant unless pairs or a label say otherwise."""
    from .pipeline.evaluate import evaluate as run

    cuts = tuple(_number(part, "--ks") for part in ks.split(","))
    report = run(
        "retrieval", query=query, gallery=gallery, connector=connector, output=output, device=device,
        pairs=pairs, label=label, ks=cuts, ties=ties, skip_existing=skip_existing,
    )  # fmt: skip
    _show([report.table(), *report.notes], report.to_json(), json)


@evaluate_app.command("classification")
def evaluate_classification(
    query: Annotated[Path, typer.Option("--query", help="Cache of items, their class in /meta.")],
    classes: Annotated[str | None, typer.Option("--classes", help="Names: text or JSON file, FILE:LIST.")] = None,
    templates: Annotated[
        str, typer.Option("--templates", help="File, or auto, plain, image, audio, pointcloud.")
    ] = "auto",
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Cache of encoded prompts.")] = None,
    connector: Annotated[
        Path | None, typer.Option("--connector", help="Connector folder; none within one space.")
    ] = None,
    label: Annotated[str, typer.Option("--label", help="Field of /meta with the class.")] = "label",
    ensemble: Annotated[
        str, typer.Option("--ensemble", help="project-then-average or average-then-project.")
    ] = "project-then-average",
    space: Annotated[str | None, typer.Option("--space", help="Where two spaces have text.")] = None,
    encoder: Encoder = None,
    confusion: Annotated[Path | None, typer.Option("--confusion", help="Also draw the confusion (PNG).")] = None,
    output: ResultFile = None,
    skip_existing: SkipExisting = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")] = None,
    json: Json = False,
) -> None:
    """Zero-shot classification by class names in prompt templates: top-1, 3, 5 and macro accuracy."""
    from .pipeline.evaluation.class_sources import ClassSettings
    from .pipeline.evaluation.classification import evaluate_classification as run

    settings: Any = {"prompts": prompts, "encoder": encoder, "space": space, "ensemble": ensemble}
    report = run(
        query, ClassSettings(classes, templates, **settings), label=label, connector=connector, output=output,
        confusion=confusion, device=device, skip_existing=skip_existing,
    )  # fmt: skip
    _show([report.table(), *report.notes], report.to_json(), json)


@evaluate_app.command("localization")
def evaluate_localization(
    items: Annotated[Path, typer.Option("--items", help="JSONL: key, audio, image, boxes.")],
    query: Annotated[Path, typer.Option("--query", help="Cache of sounds.")],
    regions: Annotated[Path, typer.Option("--regions", help="Cache of `cmcr evaluate regions`.")],
    connector: Annotated[
        Path | None, typer.Option("--connector", help="Connector folder; none within one space.")
    ] = None,
    rule: Annotated[str, typer.Option("--rule", help="lvs, slavc or absolute.")] = "lvs",
    threshold: Annotated[float, typer.Option("--threshold", help="Of the rules slavc and absolute.")] = 0.5,
    overlays: Overlays = None,
    output: ResultFile = None,
    skip_existing: SkipExisting = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")] = None,
    json: Json = False,
) -> None:
    """Find the source of each sound in its frame: cIoU at 0.5 and AUC as in LVS and SLAVC."""
    from .pipeline.evaluation.localization import LocalizationSettings
    from .pipeline.evaluation.localization import evaluate_localization as run

    settings = LocalizationSettings(rule, threshold, overlays)  # type: ignore[arg-type]
    report = run(
        items, query, regions, connector=connector, settings=settings, output=output, device=device,
        skip_existing=skip_existing,
    )  # fmt: skip
    _show([report.table(), *report.notes], report.to_json(), json)


@evaluate_app.command("counterfactual")
def evaluate_counterfactual(
    items: Annotated[Path, typer.Option("--items", help="JSONL: key, audio, image, boxes (empty: nothing sounds).")],
    query: Annotated[Path, typer.Option("--query", help="Cache of sounds.")],
    regions: Annotated[Path, typer.Option("--regions", help="Cache of `cmcr evaluate regions`.")],
    connector: Annotated[
        Path | None, typer.Option("--connector", help="Connector folder; none within one space.")
    ] = None,
    rule: Annotated[str, typer.Option("--rule", help="lvs, slavc or absolute.")] = "slavc",
    threshold: Annotated[float, typer.Option("--threshold", help="Of the rules slavc and absolute.")] = 0.5,
    overlays: Overlays = None,
    output: ResultFile = None,
    skip_existing: SkipExisting = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")] = None,
    json: Json = False,
) -> None:
    """Localize with silent and mismatched sounds among the items: AP and max-F1 as in SLAVC."""
    from .pipeline.evaluation.counterfactual import evaluate_counterfactual as run
    from .pipeline.evaluation.localization import LocalizationSettings

    settings = LocalizationSettings(rule, threshold, overlays)  # type: ignore[arg-type]
    report = run(
        items, query, regions, connector=connector, settings=settings, output=output, device=device,
        skip_existing=skip_existing,
    )  # fmt: skip
    _show([report.table(), *report.notes], report.to_json(), json)


@evaluate_app.command("regions")
def evaluate_regions(
    input: Annotated[Path, typer.Option("--input", help="JSONL of frames: key, path.")],
    output: Output,
    encoder: Annotated[str, typer.Option("--encoder", help="Image encoder.")],
    grid: Annotated[int, typer.Option("--grid", help="Windows a side.")] = 7,
    window: Annotated[float, typer.Option("--window", help="Side of a window as a share of the frame.")] = 1 / 3,
    proposals: Annotated[Path | None, typer.Option("--proposals", help="JSONL: key, boxes; no grid.")] = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Encode regions of frames into a cache for localization; run it again to resume."""
    from .pipeline import terminal
    from .pipeline.evaluation.regions import RegionSettings, encode_regions
    from .pipeline.progress import CountBar

    with _maybe(quiet or json, lambda: CountBar("regions")) as progress:
        cache = encode_regions(
            input, output, encoder=encoder, settings=RegionSettings(grid, window, proposals), device=device,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    _show(terminal.cache_lines(cache), terminal.cache_record(cache), json)


@evaluate_app.command("prompts")
def evaluate_prompts(
    classes: Annotated[str, typer.Option("--classes", help="Names: text or JSON file, FILE:LIST.")],
    output: Annotated[Path, typer.Option("--output", help="JSONL to write.")],
    templates: Annotated[str, typer.Option("--templates", help="File, or plain, image, audio, pointcloud.")] = "image",
) -> None:
    """Write the prompts of classes as a corpus for `cmcr encode --modality text`, a cache for --prompts."""
    from .pipeline.evaluation.prompts import write_prompts

    _say(f"{write_prompts(classes, templates, output):,} prompts: {output}")


@evaluate_app.command("prepare")
def evaluate_prepare(
    benchmark: Annotated[
        str, typer.Argument(help="ave, vggss, flickr-soundnet, modelnet40, esc50, audiocaps, clotho or coco.")
    ],
    media: Annotated[list[Path], typer.Option("--media", help="Folder with your files; may repeat.")],
    list_file: Annotated[Path, typer.Option("--list", help="The official list.")],
    output: Output,
    annotations: Annotated[
        Path | None, typer.Option("--annotations", help="Flickr-SoundNet: folder of XML boxes.")
    ] = None,
    silent: Annotated[Path | None, typer.Option("--silent", help="SLAVC's extended list.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="COCO (Karpathy): split; ESC-50: fold.")] = None,
    json: Json = False,
) -> None:
    """Pair an official benchmark list with your media, say what is missing, and write inputs for encode."""
    from .pipeline.evaluation.lists.benchmarks import ListOptions
    from .pipeline.evaluation.lists.prepare import prepare

    options = ListOptions(annotations, silent, split)
    prepared = prepare(benchmark, media=media, list_file=list_file, output=output, options=options)
    _show(prepared.lines(), prepared.to_json(), json)


@evaluate_app.command("recipe")
def evaluate_recipe(
    config: Annotated[Path, typer.Option("--config", help="A recipe (TOML) with [[eval]] or [[damage]] tables.")],
    connector: Connector,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")] = None,
    json: Json = False,
) -> None:
    """Run every [[eval]] and [[damage]] of a recipe, as after its fit; figures go to the connector's eval.json."""
    from .pipeline.recipe_evals import evaluate_recipe as run

    report = run(config, connector, device=device)
    _show(report.tables() or ["the recipe names nothing to evaluate"], report.to_json(), json)


@evaluate_app.command("damage")
def evaluate_damage(
    connector: Connector,
    query: Annotated[Path, typer.Option("--query", help="Cache of one space.")],
    classes: Annotated[Path | None, typer.Option("--classes", help="Class names of the same space: zero-shot.")] = None,
    gallery: Annotated[Path | None, typer.Option("--gallery", help="Gallery of the same space: retrieval.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Field of /meta with the class of a query.")] = None,
    class_label: Annotated[
        str | None, typer.Option("--class-label", help="Field of /meta with a class's name; its key if not given.")
    ] = None,
    pairs: Annotated[Path | None, typer.Option("--pairs", help="CSV: query key, gallery key.")] = None,
    output: ResultFile = None,
    skip_existing: SkipExisting = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, mps or auto.")] = None,
    json: Json = False,
) -> None:
    """What projection costs a space: zero-shot top-1 with class names, or retrieval, before and after."""
    from .pipeline.evaluation.space_damage import evaluate_space_damage as run

    report = run(
        connector, query, classes=classes, gallery=gallery, label=label, class_label=class_label, pairs=pairs,
        output=output, device=device, skip_existing=skip_existing,
    )  # fmt: skip
    _show([report.table()], report.to_json(), json)


@cache_app.command("ls")
def cache_ls(
    folder: Annotated[Path, typer.Argument(help="A folder with caches below it.")] = Path(),
    json: Json = False,
) -> None:
    """List the caches below a folder."""
    from .cache.listing import find_caches
    from .pipeline import terminal

    caches = find_caches(folder)
    shown: list[Any] = [terminal.cache_table(caches)] if caches else [f"no cache below {folder}"]
    _show(shown, [terminal.cache_record(cache) for cache in caches], json)


@cache_app.command("info")
def cache_info(
    cache: CachePath,
    errors: Annotated[bool, typer.Option("--errors", help="List the ledger.")] = False,
    json: Json = False,
) -> None:
    """Say what a cache holds and what made it."""
    from .cache.reader import open_cache
    from .pipeline import terminal

    opened = open_cache(cache)
    ledger = [vars(failure) for failure in opened.failures()] if errors else []
    lines = [f"{f['key']}: {f['stage']}, {f['error']}: {f['message']}" for f in ledger]
    record = terminal.cache_record(opened)
    _show([*terminal.cache_lines(opened), *lines], {**record, "errors": ledger} if errors else record, json)


@cache_app.command("verify")
def cache_verify(
    cache: CachePath,
    fast: Annotated[bool, typer.Option("--fast", help="Sizes and records only, no checksums.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take damaged shards back, so that encode redoes them.")
    ] = False,
    json: Json = False,
) -> None:
    """Check every shard, record and key of a cache; exit code 1 when something is wrong."""
    from .cache.verify import repair as mend
    from .cache.verify import verify
    from .pipeline import terminal

    if repair:
        mended = mend(cache, deep=not fast)
        _show(terminal.repair_lines(mended), mended, json)
        raise typer.Exit(1 if mended.remaining else 0)
    report = verify(cache, deep=not fast)
    _show(terminal.verify_lines(report), report, json)
    if not report.ok:
        raise typer.Exit(1)


@cache_app.command("import")
def cache_import(
    source: Annotated[Path, typer.Argument(help="A .npy file of vectors (N, D), or a clip-retrieval folder.")],
    output: Output,
    space: Annotated[str, typer.Option("--space", help="Short name of the space; equal names are one space.")],
    modality: Annotated[
        str | None, typer.Option("--modality", help="Of a .npy file: text, image, audio, pointcloud.")
    ] = None,
    keys: Annotated[str | None, typer.Option("--keys", help="rows, lines, or a .txt or .jsonl file.")] = None,
    key_field: Annotated[str, typer.Option("--key-field", help="Field of the .jsonl file with the key.")] = "id",
    captions: Annotated[Path | None, typer.Option("--captions", help="A .txt file, one caption a line.")] = None,
    caption_field: Annotated[
        str | None, typer.Option("--caption-field", help="Field of the .jsonl with the caption.")
    ] = None,
    key_column: Annotated[str | None, typer.Option("--key-column", help="Column of clip-retrieval metadata.")] = None,
    encoder: Encoder = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Stored type: float16 or float32.")] = "float16",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a cache from vectors that you already hold."""
    from .cache.importer import import_clip_retrieval, import_npy
    from .pipeline import terminal

    shared: dict[str, Any] = {"space": space, "encoder": encoder, "dtype": dtype, "overwrite": overwrite}
    if source.is_dir():
        caches = import_clip_retrieval(source, output, key_column=key_column, **shared)
    else:
        if modality is None:
            raise RecipeError(
                "The modality of the vectors is not said.",
                where=str(source),
                todo="add --modality text, image, audio or pointcloud",
            )
        caches = [
            import_npy(
                source, output, modality=modality, keys=keys, key_field=key_field, captions=captions,
                caption_field=caption_field, **shared,
            )
        ]  # fmt: skip
    lines = [line for cache in caches for line in terminal.cache_lines(cache)]
    _show(lines, [terminal.cache_record(cache) for cache in caches], json)


@cache_app.command("export")
def cache_export(
    cache: CachePath,
    output: Annotated[Path, typer.Option("--output", help="File to write.")],
    output_format: Annotated[str, typer.Option("--format", help="npy, parquet or faiss.")] = "npy",
    since: Annotated[int | None, typer.Option("--since", help="Only rows planned after this generation.")] = None,
    json: Json = False,
) -> None:
    """Write vectors and keys for a vector database: .npy, parquet or a FAISS index."""
    from .pipeline.export import export_cache

    report = export_cache(cache, output, format=output_format, since=since)
    _show(report.lines(), report.to_json(), json)


@connector_app.command("info")
def connector_info(folder: Annotated[Path, typer.Argument(help="Connector folder.")], json: Json = False) -> None:
    """Say what a connector joins and what it was made from."""
    from .pipeline import terminal
    from .trainer.connector import Connector as Loaded

    loaded = Loaded.load(folder)
    _show(terminal.connector_lines(loaded), jsonlib.loads((folder / "config.json").read_text(encoding="utf-8")), json)


def _made(connector: Any, output: Path, overwrite: bool, json: bool) -> None:
    """Write a connector that no fit made, and say what it is."""
    from .trainer.made_folder import write_made

    connector_info(write_made(connector, output, overwrite=overwrite), json=json)


@connector_app.command("import")
def connector_import(
    file: Annotated[Path, typer.Argument(help="clap_clip.pt, ulip_clip.pt, ex_clap.pt or ex_ulip.pt.")],
    output: Output,
    kind: Annotated[
        str | None, typer.Option("--kind", help="clap_clip, ulip_clip, ex_clap or ex_ulip; else by its keys.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a connector from a published checkpoint of C-MCR or Ex-MCR."""
    from .trainer.official import import_official

    _made(import_official(file, kind), output, overwrite, json)


@connector_app.command("chain")
def connector_chain(
    folders: Annotated[list[Path], typer.Argument(help="Two or more connectors that keep the same space.")],
    output: Output,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make one connector from several that keep the same space: audio to 3D through an untouched CLIP, say."""
    from .trainer.chain import chain_folders

    _made(chain_folders(folders), output, overwrite, json)


@connector_app.command("export")
def connector_export(
    folder: Annotated[Path, typer.Argument(help="Connector folder.")],
    output: Annotated[Path, typer.Option("--output", help="File to write.")],
    format: Annotated[
        str, typer.Option("--format", help="official: the authors' state dict; onnx: one head, needs the extra onnx.")
    ] = "official",
    kind: Annotated[str | None, typer.Option("--kind", help="official: which checkpoint, where several fit.")] = None,
    space: Annotated[str | None, typer.Option("--space", help="onnx: whose head, where several are trained.")] = None,
) -> None:
    """Write a connector's heads for other programs."""
    from .trainer.export import export

    _show([f"written: {export(folder, output, format=format, kind=kind, space=space)}"], None, False)


@encoders_app.callback()
def encoders(context: typer.Context, json: Json = False) -> None:
    """List families and well-known encoders: what is installed, what is missing, what adds it."""
    if context.invoked_subcommand is not None:
        return
    from .pipeline.encoders.listing import list_encoders
    from .pipeline.machine_lines import listing_lines

    listing = list_encoders()
    _show(listing_lines(listing), listing, json)


@encoders_app.command("check")
def encoders_check(
    name: Annotated[str, typer.Argument(help="family:model/weights, a short name, or my.py:MyEncoder.")],
    modality: Annotated[str | None, typer.Option("--modality", help="One tower only.")] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    json: Json = False,
) -> None:
    """Load an encoder, encode one item, and say dimension, space, fingerprint and speed."""
    from dataclasses import asdict

    from .pipeline.encoders.check import check as run
    from .pipeline.machine_lines import check_lines

    chosen: Any = modality
    checked = run(name, modality=chosen, device=device, precision=precision)
    _show(check_lines(checked), [asdict(one) for one in checked], json)


@encoders_app.command("pull")
def encoders_pull(
    names: Annotated[list[str], typer.Argument(help="Encoder names: clip, clap, sentence:ORG/REPO, ...")],
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Fetch weights and tokenizers where there is network; run it again to go on after a cut."""
    from .pipeline.encoders.pull import pull as run
    from .pipeline.machine_lines import pull_lines
    from .pipeline.progress import CountBar

    silent = quiet or json
    with _maybe(silent, lambda: CountBar("pull")) as progress:
        report = run(names, say=None if silent else _say, progress=progress)
    _show(pull_lines(report), report, json)


@app.command()
def submit(
    command: Annotated[list[str], typer.Argument(help="After --: encode, complete, project or fit, and its flags.")],
    tasks: Tasks = 1,
    gpus: Gpus = 0,
    cpus: Annotated[int, typer.Option("--cpus", help="Cores of a task; 0 leaves them to the cluster.")] = 0,
    memory: Annotated[str, typer.Option("--memory", help="Memory of a task, as in 32G.")] = "",
    partition: Partition = "",
    account: Annotated[str, typer.Option("--account", help="Account that pays.")] = "",
    time: Annotated[
        str, typer.Option("--time", help="Of a task: minutes, H:MM:SS or D-HH:MM; one that needs longer goes on later.")
    ] = "4:00:00",
    throttle: Annotated[int, typer.Option("--throttle", help="Tasks at the same time; 0 for all.")] = 0,
    extra: Annotated[
        list[str] | None, typer.Option("--extra", help="Option of sbatch: constraint=a100, exclusive; may repeat.")
    ] = None,
    setup: Annotated[
        list[str] | None, typer.Option("--setup", help="Shell line that tasks run first: 'module load cuda'.")
    ] = None,
    cluster: Annotated[str, typer.Option("--cluster", help="slurm, or local: processes of this machine.")] = "slurm",
    wait: Wait = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print script and plan; queue nothing.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a command as a job array: cmcr submit --tasks 8 -- encode --modality text ..."""
    from .pipeline.cluster.options import parse_extra
    from .pipeline.cluster.submit import submit as run

    given: dict[str, Any] = {
        "tasks": tasks, "gpus": gpus, "cpus": cpus, "memory": memory, "partition": partition, "account": account,
        "time": time, "throttle": throttle, "extra": parse_extra(extra or ()), "setup": setup or (), "cluster": cluster,
    }  # fmt: skip
    if not (quiet or json):
        _say("checking the command, its inputs and its weights")
    _submitted(run(command, dry_run=dry_run, **given), wait, json)


def _submitted(made: Any, wait: bool, json: bool) -> None:
    """Print a submission, and wait for its tasks if asked to."""
    from .pipeline.cluster import lines

    awaited = wait and bool(made.jobs)
    try:
        if not (json and awaited and made.words[0] != "fit"):  # else the status is the one JSON document
            _show(lines.submission_lines(made), made.to_json(), json)
        if not awaited:
            return
        made.wait()
    except KeyboardInterrupt:
        _say(lines.waiting_line(made))
        raise typer.Exit(130) from None
    if made.words[0] != "fit":
        status(made.output, max_failure_rate=1.0, json=json)
    elif not (made.output / "config.json").exists():
        _say(f"error: the fit did not end well; its log is in {made.logs}")
        raise typer.Exit(1)


@app.command()
def status(
    cache: CachePath,
    max_failure_rate: Annotated[
        float, typer.Option("--max-failure-rate", help="Share of lost items that still counts as good.")
    ] = 0.0,
    json: Json = False,
) -> None:
    """Say how far a cache is. Exit code 0: finished and nothing lost, 3: work goes on, 1: neither (cmcr retry)."""
    from .pipeline.cluster.lines import status_lines
    from .pipeline.cluster.status import status as run

    now = run(cache)
    _show(status_lines(now), now.to_json(), json)
    if code := now.exit_code(max_failure_rate):
        raise typer.Exit(code)


@app.command()
def retry(
    cache: CachePath,
    tasks: Annotated[int | None, typer.Option("--tasks", help="Tasks, where not as many as before.")] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", help="GPUs of a task, where not as before.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="Memory of a task, where not as before.")] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="Partition, where not as before.")] = None,
    time: Annotated[str | None, typer.Option("--time", help="Time of a task, where not as before.")] = None,
    cluster: Annotated[str | None, typer.Option("--cluster", help="slurm or local, where not as before.")] = None,
    wait: Wait = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print script and plan; queue nothing.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Submit what failed again: shards that are not done, and those of an encode that lost items."""
    from .pipeline.cluster.retry import retry as run

    given = {"tasks": tasks, "gpus": gpus, "memory": memory, "partition": partition, "time": time, "cluster": cluster}
    if not (quiet or json):
        _say("checking the command, its inputs and its weights")
    _submitted(run(cache, dry_run=dry_run, **{n: v for n, v in given.items() if v is not None}), wait, json)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what is installed, which encoders work without network, and what to type next."""
    from .pipeline.doctor import diagnose
    from .pipeline.machine_lines import doctor_lines

    diagnosis = diagnose()
    _show(doctor_lines(diagnosis), diagnosis, json)


def _maybe(silent: bool, make: Any) -> Any:
    """The context manager that ``make`` gives, or one that gives None."""
    from contextlib import nullcontext

    return nullcontext() if silent else make()


def _number(text: str, flag: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RecipeError(f"{text!r} is not a whole number.", where=flag, todo="for example --ks 1,5,10") from None


def _say(line: str) -> None:
    """One line for people, apart from the result."""
    typer.echo(line, err=True)


def _show(lines: Any, record: Any, json: bool) -> None:
    """Print a result: lines and tables for people, or one JSON document."""
    if json:
        from dataclasses import asdict, is_dataclass

        plain = asdict(record) if is_dataclass(record) and not isinstance(record, type) else record
        typer.echo(jsonlib.dumps(plain, indent=2, default=str))
        return
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    # A file or a pipe has no width of its own; tables are made for 100 columns.
    wide = Console() if console.is_terminal else Console(width=max(console.width, 100))
    for line in lines:
        console.print(line, markup=False) if isinstance(line, str) else wide.print(line)


def main() -> None:
    """Run the command line."""
    # Before torch is imported. Spinning OpenMP threads slow small steps tenfold on a machine that others use too; those
    # that sleep at once take longer to wake than many an operation takes. So GNU's threads spin a moment, then sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app()


if __name__ == "__main__":
    main()
