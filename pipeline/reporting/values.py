"""What a comparison page is made of: figures of runs, and tables of runs that may be compared. Values only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Measures in the order of a table; others follow by name.
ORDER = (
    *("macro_mAP", "macro_P@1", "macro_P@5", "macro_P@10", "R@1", "R@5", "R@10", "true_R@1", "true_R@5", "true_R@10"),
    *("mAP", "MRR", "nDCG@10", "median_rank", "top1", "top3", "top5", "macro_top1", "macro_top3", "macro_top5"),
    *("AP", "max-F1", "max-F1 of tenths", "cIoU@0.5", "AUC", "mean cIoU", "before", "after", "change"),
)
SMALL_IS_GOOD = ("median_rank",)
NO_SHARES = ("median_rank",)  # printed as they are, not in percent
PROTOCOLS = ("retrieval", "classification", "localization", "counterfactual", "damage")
MAIN = {"classification": "top1", "localization": "cIoU@0.5", "counterfactual": "AP", "damage": "change"}


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval over queries, and its deviation over seeds, where they are known."""

    value: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None


@dataclass(frozen=True)
class Run:
    """One evaluated thing: ``label`` is unique on the page; ``connectors`` are fingerprints, one a seed."""

    label: str
    file: Path
    method: str | None
    connectors: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 1


@dataclass(frozen=True)
class Entry:
    """The figures of one run in one table.

    Parameters
    ----------
    protocol, part : str
        Part is ``there``, ``back``, or empty where a protocol has one table.
    subject : mapping
        What was evaluated, connector apart; :func:`key_of` says which of it must agree.
    title, about : str
        What is asked among what; how it is counted.
    counts : mapping of str to int
        Queries, items and the like.
    chance : mapping of str to float
    run : Run
    figures : mapping of str to Estimate
    """

    protocol: str
    part: str
    subject: Mapping[str, Any]
    title: str
    about: str
    counts: Mapping[str, int]
    chance: Mapping[str, float]
    run: Run
    figures: Mapping[str, Estimate]

    @property
    def group(self) -> str:
        """Equal for entries over one protocol and one set: both directions of it."""
        return key_of(self.protocol, self.subject)


@dataclass(frozen=True)
class Table:
    """Runs that may be compared: one protocol, one set, one direction."""

    entries: tuple[Entry, ...]

    @property
    def first(self) -> Entry:
        """What all entries agree in is read from it."""
        return self.entries[0]

    @property
    def measures(self) -> tuple[str, ...]:
        """Columns, in the usual order; true recall only where it differs from recall."""
        found = {name for entry in self.entries for name in entry.figures}
        same = {f"true_{name}" for name in found if name.startswith("R@") and self._equals_true_recall(name)}
        shown = found - same - {name for name in found if name.startswith("P@")}
        place = {name: number for number, name in enumerate(ORDER)}
        return tuple(sorted(shown, key=lambda name: (place.get(name, len(place)), name)))

    def _equals_true_recall(self, name: str) -> bool:
        pairs = [(e.figures[name], e.figures[f"true_{name}"]) for e in self.entries if f"true_{name}" in e.figures]
        return all(abs(one.value - other.value) < 1e-12 for one, other in pairs if one is not None)

    @property
    def main(self) -> str:
        """The measure of the bars."""
        fixed = MAIN.get(self.first.protocol)
        return fixed if fixed in self.measures else self.measures[0]

    @property
    def ranked(self) -> tuple[Entry, ...]:
        """Entries by the main measure, best first; those that lack it last."""
        main, sign = self.main, 1 if self.main in SMALL_IS_GOOD else -1
        have = [entry for entry in self.entries if main in entry.figures]
        rest = [entry for entry in self.entries if main not in entry.figures]
        return (*sorted(have, key=lambda e: (sign * e.figures[main].value, e.run.label)), *rest)

    def best(self, measure: str) -> float | None:
        """The best figure of a measure; None where one run alone has it."""
        values = [entry.figures[measure].value for entry in self.entries if measure in entry.figures]
        if len(values) < 2:
            return None
        return min(values) if measure in SMALL_IS_GOOD else max(values)


@dataclass(frozen=True)
class Group:
    """One protocol on one set: a table, or one for each direction."""

    tables: tuple[Table, ...]

    @property
    def first(self) -> Entry:
        """What all entries agree in is read from it."""
        return self.tables[0].first


def key_of(protocol: str, subject: Mapping[str, Any]) -> str:
    """What has to agree for two runs to stand in one table, as one string.

    Caches count by their content, a projected one by that of the raw cache behind it; a file of pairs by its content.
    Connector, versions, names and cut-offs do not count.
    """
    dropped = {"format", "version", "versions", "protocol", "connector", "cut_offs", "name", "list", "intervals"}
    if protocol == "retrieval":
        # the rule of relevance names a label, and a file of pairs whose content stands beside it
        dropped |= {"label", "relevant"} if subject.get("pairs") else {"label"}
    kept = {name: _bare(value) for name, value in subject.items() if name not in dropped}
    kept |= {"distractors": subject.get("distractors", True), "no_class": subject.get("no_class", [])}
    return json.dumps([protocol, kept], sort_keys=True, default=str)


def _bare(value: Any) -> Any:
    if isinstance(value, Mapping) and "content" in value:
        return value.get("projected_from") or value["content"]
    return value


def grouped(entries: Iterable[Entry]) -> tuple[Group, ...]:
    """Entries as groups of tables: protocols in the usual order, sets and runs in the order in which they were read."""
    found: dict[str, dict[str, list[Entry]]] = {}
    for entry in entries:
        found.setdefault(entry.group, {}).setdefault(entry.part, []).append(entry)
    groups = [Group(tuple(Table(tuple(part)) for part in parts.values())) for parts in found.values()]
    return tuple(sorted(groups, key=lambda group: PROTOCOLS.index(group.first.protocol)))
