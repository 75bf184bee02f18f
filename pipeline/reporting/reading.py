"""Result files below folders: found, read, and turned into entries; what is none is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...cache.errors import CmcrError
from ...cache.manifest import MANIFEST_NAME
from ...trainer.run_folder import CONFIG, EVALS
from .. import compare, recipe_evals
from ..evaluation.results import FORMAT, READABLE
from .values import PROTOCOLS, Entry, Estimate, Run

Record = Mapping[str, Any]
_LARGEST = 64 << 20  # bytes of a JSON file that is opened
_ARROW = " → "
_OF_A_CONNECTOR = (CONFIG, "connector.safetensors")


@dataclass(frozen=True)
class LeftOut:
    """A file that is not on the page. ``broken``: it should be, but cannot be read."""

    file: Path
    what: str
    broken: bool

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass
class Collected:
    """Entries in the order of their files, how many files they are from, and what was left out."""

    entries: list[Entry] = field(default_factory=list)
    files: int = 0
    left_out: list[LeftOut] = field(default_factory=list)


class _NoResultError(Exception):
    """A JSON file of something else."""


class _BrokenError(Exception):
    """A result file that cannot be used."""


def collect(folders: Sequence[Path]) -> Collected:
    """Read every result file below the folders; a folder may be one result file.

    Raises
    ------
    CmcrError
        A folder does not exist.
    """
    found, seen = Collected(), set[Path]()
    homes = [root.parent if root.is_file() else root for root in folders]
    named = {home.resolve() for home in homes}
    short = len({home.name for home in named}) == len(named)
    for root, home in zip(folders, homes, strict=True):
        # Of several folders the files bear the folder's name: its last part, or all of it where last parts agree.
        above = Path() if len(named) == 1 else Path(home.resolve().name if short else home.resolve())
        if not root.exists():
            raise CmcrError("The folder of results does not exist.", where=str(root), todo="check the path")
        for path in json_files(root):
            if (real := path.resolve()) in seen:
                continue
            seen.add(real)
            name = above / path.relative_to(home)
            try:
                made = entries_of(_load(path), name)
            except _NoResultError as other:
                found.left_out.append(LeftOut(name, str(other), broken=False))
            except _BrokenError as error:
                found.left_out.append(LeftOut(name, str(error), broken=True))
            else:
                found.files += 1
                found.entries += made
    found.entries = _named_apart(found.entries)
    return found


def json_files(root: Path) -> Iterator[Path]:
    """JSON files below a folder in the order of their paths, without those that belong to caches and connectors."""
    if root.is_file():
        yield root
        return
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        own: tuple[str, ...] = ()
        if MANIFEST_NAME in files:
            folders.clear()
            continue
        if all(name in files for name in _OF_A_CONNECTOR):
            folders.clear()
            own = _OF_A_CONNECTOR
        for name in sorted(files):
            if name.endswith(".json") and not name.startswith(".") and name not in own:
                yield Path(place) / name


def _load(path: Path) -> Record:
    try:
        if path.stat().st_size > _LARGEST:
            raise _NoResultError(f"{path.stat().st_size >> 20} MB are no result file")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _BrokenError(f"cannot be read as JSON: {reason}") from None
    if not isinstance(record, dict):
        raise _NoResultError("no result of an evaluation")
    return record


def entries_of(record: Record, name: Path) -> list[Entry]:
    """Entries of one result file."""
    kind, version = record.get("format"), record.get("version")
    readers: dict[str, tuple[tuple[int, ...], str, Callable[[Record, Path], list[Entry]]]] = {
        FORMAT: (READABLE, "cmcr evaluate", _of_evaluation),
        recipe_evals.FORMAT: ((recipe_evals.VERSION,), "cmcr evaluate recipe", _of_recipe),
        compare.FORMAT: ((compare.VERSION,), "cmcr compare, which fits nothing again", _of_comparison),
    }
    if not isinstance(kind, str) or kind not in readers:
        raise _NoResultError(f"no result of an evaluation, but {kind}" if kind else "no result of an evaluation")
    versions, command, read = readers[kind]
    if version not in versions:
        raise _BrokenError(f"version {version!r} of {kind}, this package reads {versions[-1]}; run again: {command}")
    try:
        return read(record, name)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise _BrokenError(f"not a whole {kind}: {what}; evaluate again") from None


def _of_evaluation(record: Record, name: Path) -> list[Entry]:
    protocol = str(record["protocol"])
    if protocol not in PROTOCOLS:
        raise ValueError(f"the protocol {protocol!r} is not known here")
    joined = record["connector"]
    run = Run(
        label=name.with_suffix("").as_posix(),
        file=name,
        method=None if joined is None else str(joined["method"]),
        connectors=() if joined is None else (str(joined["fingerprint"]),),
        versions=dict(record["versions"]),
    )
    known = ("query_to_gallery", "gallery_to_query", "figures", "interval", "classes", "per_class", "most_confused")
    subject = {field: value for field, value in record.items() if field not in (*known, "missing")}
    if protocol == "retrieval":
        return _both_directions(record, subject, run)
    if protocol == "damage":
        return [_of_damage(record["figures"], run)]
    return [_of_one_table(protocol, record, subject, run)]


def _both_directions(record: Record, subject: Record, run: Run) -> list[Entry]:
    """Both directions of a retrieval record, of ``evaluate retrieval`` or of one set of a recipe."""
    names = [str(record[side]["name"]) for side in ("query", "gallery")]
    about = f"relevant = {record['relevant']}, ties {record['ties']}"
    about += "" if record.get("distractors", True) else ", no distractors"
    out = []
    for part, side, title in (
        ("there", "query_to_gallery", _ARROW.join(names)),
        ("back", "gallery_to_query", _ARROW.join(names[::-1])),
    ):
        figures = record[side]
        counts = {
            "queries": int(figures["queries"]),
            "items": int(figures["gallery"]),
            "left out": int(figures["skipped"]),
        }
        made = _estimates(figures, figures.get("interval", {}))
        by_chance = {name: float(figures["chance"][name]) for name in made if name in figures["chance"]}
        out.append(Entry("retrieval", part, subject, title, about, counts, by_chance, run, made))
    return out


_COUNTS = ("queries", "skipped", "gallery", "items", "audible", "inaudible", "answers")


def _estimates(figures: Record, intervals: Record) -> dict[str, Estimate]:
    """Every number of a record that is a figure, with its interval."""
    return {
        name: Estimate(float(value), *(map(float, intervals[name]) if name in intervals else (None, None)))
        for name, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _COUNTS
    }


def _of_one_table(protocol: str, record: Record, subject: Record, run: Run) -> Entry:
    made = _estimates(record["figures"], record.get("interval", {}))
    by_chance = {n.removeprefix("chance_"): e.value for n, e in made.items() if n.startswith("chance_")}
    by_chance |= {f"macro_{name}": value for name, value in by_chance.items()}
    figures = {name: one for name, one in made.items() if not name.startswith("chance_")}
    counts = {n: int(record["figures"][n]) for n in ("items", "audible", "inaudible") if n in record["figures"]}
    if protocol == "classification":
        counts |= {"classes": len(record["classes"]), "left out": int(record["figures"]["skipped"])}
        title, about = str(record["query"]["name"]), f"zero-shot, label {record['label']!r}, {record['ensemble']}"
    else:
        counts["left out"] = len(record["missing"])
        title = f"{record['sounds']['name']} in {record['regions']['name']}"
        threshold = f" {record['threshold']}" if "threshold" in record else ""
        about = f"list {record['list']}, rule {record['rule']}{threshold}"
    return Entry(protocol, "", subject, title, about, counts, by_chance, run, figures)


def _of_damage(figures: Record, run: Run, made: Mapping[str, Estimate] | None = None) -> Entry:
    """One look at damage: of ``evaluate damage``, of a recipe, or of a method of a comparison (``made``)."""
    if made is None:
        low, high = figures["interval"]
        made = {
            "after": Estimate(float(figures["after"])),
            "change": Estimate(float(figures["change"]), float(low), float(high)),
        }
    before = Estimate(float(figures["before"]))
    # The space is named by a connector, the look by its user: neither decides a figure.
    subject = {"task": figures["task"], "before": round(before.value, 9), **figures["asked"]}
    counts = {"queries": int(figures["queries"]), "answers": int(figures["answers"])}
    return Entry(
        "damage",
        "",
        subject,
        str(figures["name"]),
        f"{figures['task']}, inside {figures['space']}",
        counts,
        {"after": float(figures["chance"])},
        run,
        {"before": before, **made},
    )


def _of_recipe(record: Record, name: Path) -> list[Entry]:
    folder = name.parent if name.name == EVALS and name.parent != Path() else name.with_suffix("")
    joined = record["connector"]
    run = Run(folder.as_posix(), name, str(joined["method"]), (str(joined["fingerprint"]),), dict(record["versions"]))
    out = []
    for one in record["evals"]:
        subject = {n: v for n, v in one.items() if n not in ("query_to_gallery", "gallery_to_query")}
        out += [_with_set_name(entry, one["name"]) for entry in _both_directions(one, subject, run)]
    return out + [_of_damage(one, run) for one in record["damage"]]


def _with_set_name(entry: Entry, name: str) -> Entry:
    return replace(entry, title=f"{name}: {entry.title}")


def _of_comparison(record: Record, name: Path) -> list[Entry]:
    folder = name.parent.as_posix()
    out = []
    runs = {
        method: Run(
            label=method if folder == "." else f"{folder}/{method}",
            file=name,
            method=method,
            connectors=tuple(map(str, prints)),
            versions={"cmcr": str(record["cmcr"])},
            seeds=max(1, len(record["seeds"].get(method, ()))),
        )
        for method, prints in record["connectors"].items()
    }
    for part in record["parts"]:
        for method, figures in part["figures"].items():
            entry = Entry(
                "retrieval",
                str(part["side"]),
                part["subject"],
                f"{part['name']}: {part['title']}",
                str(part["about"]) + ("" if part["subject"]["distractors"] else ", no distractors"),
                {"queries": int(part["queries"]), "items": int(part["items"])},
                {measure: float(value) for measure, value in part["chance"].items()},
                runs[method],
                {measure: _of_seeds(figure) for measure, figure in figures.items()},
            )
            out.append(entry)
    for look in record["damage"]:
        for method in look["after"]:
            made = {side: _of_seeds(look[side][method]) for side in ("after", "change")}
            out.append(_of_damage(look, runs[method], made))
    return out


def _of_seeds(figure: Record) -> Estimate:
    sd = figure["sd"]
    return Estimate(
        float(figure["mean"]), float(figure["low"]), float(figure["high"]), None if sd is None else float(sd)
    )


def _named_apart(entries: list[Entry]) -> list[Entry]:
    """Runs of different files that have one label get their file's name as well: rows of a table must differ."""
    files: dict[str, set[Path]] = {}
    for entry in entries:
        files.setdefault(entry.run.label, set()).add(entry.run.file)
    folders = [Path(label).parts[:-1] for label in files]
    shared = 0  # folders that every label begins with: they tell nothing apart
    while len(folders) > 1 and len({parts[: shared + 1] for parts in folders}) == 1 and len(folders[0]) > shared:
        shared += 1

    def renamed(run: Run) -> Run:
        short = "/".join(Path(run.label).parts[shared:])
        return replace(run, label=f"{short} ({run.file})" if len(files[run.label]) > 1 else short)

    return [replace(entry, run=renamed(entry.run)) for entry in entries]
