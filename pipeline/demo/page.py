"""The demo's table and its page, with the answers of weave to a few queries."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.errors import CmcrError
from ...cache.fsio import write_atomic
from ..report import Example, HitView, Report, Row, Stage, TaskReport, data_uri, png_uri, render
from ..search import SearchResult, search
from ..tiles import item_tile
from .results import DemoResult, TaskResult
from .tasks import TRAINED_WITHOUT_PAIRS, TRUE_PAIRS

if TYPE_CHECKING:
    from rich.table import Table


EXAMPLES, HITS, TILE = 6, 6, 200
ANSWERED_BY = "weave"  # by name: choosing by the figures of the page would flatter it
MEASURES = ("R@1", "R@5", "R@10", "mAP")
NAMES = {
    "chance": "chance",
    "identity": "identity: the two spaces as they are",
    "procrustes": "Procrustes on the overlap",
    "ridge": "ridge regression on the overlap",
    "bridge": "bridge: softmax over the overlap, no training",
    "c-mcr": "C-MCR, the paper's",
    "weave": "weave, ours",
    TRUE_PAIRS: "true pairs: C-MCR's projectors, shown pairs",
}


ITEMS = {"audio": "sound", "image": "picture", "text": "caption", "pointcloud": "point cloud"}
CANDIDATES = {
    "trained": "the trained projectors",
    "linear": "the linear map",
    "anchors": "the walk over anchors, which trains nothing",
}


def next_commands() -> str:
    """What to type for one's own files: the same text in the terminal and on the page."""
    return (Path(__file__).parents[1] / "templates" / "next.txt").read_text(encoding="utf-8")


def demo_lines(result: DemoResult) -> list[Any]:
    """One table, the trained methods against true pairs, and what to type next."""
    if not result.tasks:
        return [f"sandbox corpora of world {result.seed}: {result.corpora.root}"]
    return [
        result_table(result),
        "The world is synthetic: these figures say that the machinery works, not how good it is on real data.",
        *(f"{t.task.title}: without a pair, {_against_true_pairs(t)}." for t in result.tasks),
        f"report: {result.output / 'report.html'}",
        "\nYour own files next:\n",
        next_commands(),
    ]


def result_table(result: DemoResult) -> Table:
    """Every method of both connections in one table, percent."""
    from rich.table import Table

    table = Table(title=f"Sandbox world {result.seed}, held-out objects, percent", title_justify="left")
    table.add_column("connection")
    table.add_column("method")
    for name in (*MEASURES, "median rank"):
        table.add_column(name, justify="right")
    for task in result.tasks:
        for n, row in enumerate(task.rows):
            shown = _percents(task, row.method)
            style = {"c-mcr": "bold", "weave": "bold", "chance": "dim", TRUE_PAIRS: "dim"}.get(row.method)
            cells = (task.task.title if n == 0 else "", row.method, *shown, f"{row.figures['median_rank']:g}")
            table.add_row(*cells, style=style, end_section=n == len(task.rows) - 1)
    return table


def _percents(outcome: TaskResult, method: str) -> list[str]:
    """The measures of a method in percent, R@1 with its standard error."""
    shown = [f"{100 * outcome.of(method).figures[name]:.1f}" for name in MEASURES]
    if method != "chance":
        shown[0] += f" ± {100 * outcome.standard_error(method):.1f}"
    return shown


def _against_true_pairs(outcome: TaskResult) -> str:
    """R@1 of the methods that are trained without pairs, as shares of the same projectors' on true pairs."""
    shares = [f"{'C-MCR' if m == 'c-mcr' else m} reaches {outcome.share(m):.0%}" for m in TRAINED_WITHOUT_PAIRS]
    return f"{' and '.join(shares)} of the R@1 of C-MCR's projectors on {outcome.of(TRUE_PAIRS).rows:,} true pairs"


def write_report(result: DemoResult) -> Path:
    """``report.html``: tables, examples with pictures and sounds, training curves."""
    captions = _captions(result.corpora.eval_captions)
    report = Report(
        title="Connecting frozen spaces without paired data",
        subtitle=f"cmcr demo, sandbox world {result.seed}: corpora, caches, connectors and answers of this machine.",
        notice=(
            "This world is synthetic: toys drawn, sounded and described by code, and tiny encoders trained on it."
            " The figures show that the machinery works and how the methods compare here. They do not say how good a"
            " connector is on real data."
        ),
        tasks=tuple(_task(result, task, captions) for task in result.tasks),
        stages=tuple(Stage(*stage) for stage in result.stages),
        next_lead=(
            "The same commands take your own corpora. Real encoders download their weights once; vectors that you"
            " already hold need no encoder at all. The fit below is weave's, as the answers above are: it asks for no"
            " settings, and for a memory bank in both spaces. With --method c-mcr it is the paper's."
        ),
        next_commands=next_commands(),
    )
    path = result.output / "report.html"
    write_atomic(path, render(report).encode("utf-8"))
    return path


def _captions(path: Path) -> dict[str, str]:
    """Caption of every evaluation object by key."""
    records = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {record["key"]: record["caption"] for record in records}


def _task(result: DemoResult, outcome: TaskResult, captions: dict[str, str]) -> TaskReport:
    """The section of one connection."""
    task = outcome.task
    ours, paper = outcome.of(ANSWERED_BY), outcome.of("c-mcr")
    assert ours.connector is not None
    assert paper.connector is not None
    caches = result.output / "caches"
    keys = sorted(captions)[:EXAMPLES]
    found = search(ours.connector, caches / task.gallery, query=caches / task.query, key=keys, k=HITS)
    folder = (
        (result.corpora.eval_sounds, ".wav") if task.query_modality == "audio" else (result.corpora.eval_clouds, ".npy")
    )
    first = sum(hits[0].key == query.key for query, hits in zip(found.queries, found.hits, strict=True))
    return TaskReport(
        title=task.title,
        lead=task.lead,
        bar_measure="R@1",
        measures=(*MEASURES, "median rank"),
        rows=tuple(_row(outcome, row.method) for row in outcome.rows),
        reading=_reading(outcome),
        examples_title=(
            f"The first {len(keys)} held-out objects, unpicked, answered by {ANSWERED_BY}:"
            f" {first} {'finds its' if first == 1 else 'find their'} own {ITEMS[task.gallery_modality]} first"
        ),
        examples_note=(
            "The number is the cosine of answer and query. A vector of weave carries its own space's vector beside the"
            " shared part, so that across spaces even a right answer stays well below 1; where items that answer"
            " everything are marked down, it may be negative. Only the order counts."
        ),
        examples=tuple(_examples(result, outcome, found, captions, folder)),
        curve=data_uri(paper.connector / "curve.png"),
        curve_caption="Training of C-MCR: the losses over the steps.",
    )


def _row(outcome: TaskResult, method: str) -> Row:
    figures = outcome.of(method).figures
    values = _percents(outcome, method)
    role = {"c-mcr": "paper", "weave": "ours", TRUE_PAIRS: "pairs"}.get(method, "")
    bar = 100 * figures["R@1"]
    return Row(NAMES[method], bar, (*values, f"{figures['median_rank']:g}"), role)  # type: ignore[arg-type]


def _reading(outcome: TaskResult) -> tuple[str, str]:
    """The table in a few sentences, and what its last row is."""
    weave, paired, task = outcome.of("weave"), outcome.of(TRUE_PAIRS), outcome.task
    best = max((row for row in outcome.rows if row.method in outcome.task.methods), key=lambda row: row.figures["R@1"])
    winner = "" if best.method in TRAINED_WITHOUT_PAIRS else f" The best method here trains nothing: {best.method}."
    return (
        f"{int(weave.figures['queries'])} queries; ± is one standard error. weave fits three candidates and keeps the"
        f" one that unlabelled items of the banks ask for, here: {CANDIDATES.get(weave.chose, weave.chose)}.{winner}",
        f"The row true pairs is a yardstick, no bound: the projectors and the overlap loss of C-MCR on {paired.rows:,}"
        f" pairs of {ITEMS[task.query_modality]} and {ITEMS[task.gallery_modality]}, where the rows above"
        f" it see {weave.rows:,} overlapping items and no pair. Without a pair, {_against_true_pairs(outcome)}.",
    )


def _examples(
    result: DemoResult, outcome: TaskResult, found: SearchResult, captions: dict[str, str], folder: tuple[Path, str]
) -> list[Example]:
    """Queries with their pictures or sounds, and what was found."""
    words = outcome.task.gallery_modality == "text"
    examples = []
    for query, hits in zip(found.queries, found.hits, strict=True):
        if query.key is None:
            raise CmcrError("A query of the demo has no key.", where=str(result.output))
        media = folder[0] / f"{query.key}{folder[1]}"
        views = tuple(
            HitView(
                label=captions[hit.key] if words else "",
                score=f"{hit.score:.3f}",
                right=hit.key == query.key,
                picture="" if words else data_uri(result.corpora.eval_images / f"{hit.key}.png"),
            )
            for hit in hits
        )
        examples.append(
            Example(
                label=captions[query.key],
                hits=views,
                picture=_tile(outcome.task.query_modality, media),
                picture_alt=f"{outcome.task.query_modality} of {query.key}",
                sound=data_uri(media) if outcome.task.query_modality == "audio" else "",
                words=words,
            )
        )
    return examples


def _tile(modality: str, media: Path) -> str:
    """A picture of a sound or of a point cloud."""
    data = io.BytesIO()
    item_tile(modality, media, None, TILE).save(data, format="PNG")
    return png_uri(data.getvalue())
