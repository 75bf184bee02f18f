"""Sound source localization, and its counterfactual extension; both spelled out in ``docs/evaluation.md``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...cache.errors import CmcrError
from ...cache.reader import Cache
from ...trainer.connector import Connector
from ..shared import SharedView, as_cache, as_connector
from .intervals import HOW, Intervals, counterfactual_intervals, from_json, localization_intervals, to_json
from .items import read_items
from .localization_measures import (
    RULES,
    Detection,
    Rule,
    box_map,
    confidence,
    consensus_iou,
    predicted_mask,
    success_auc,
    success_rate,
)
from .results import check_place, digest_of_file, existing_result, subject, write_result
from .rows import check_one_space
from .source_maps import MapSource, figures_table, missing_note

if TYPE_CHECKING:
    from rich.table import Table

Protocol = Literal["localization", "counterfactual"]


@dataclass(frozen=True)
class LocalizationSettings:
    """How maps are read.

    Parameters
    ----------
    rule : str
        ``lvs``, ``slavc`` or ``absolute`` (:func:`predicted_mask`).
    threshold : float
        Of the rules ``slavc`` (share of the sorted map) and ``absolute`` (score).
    overlays : path, optional
        Folder for pictures of frames with their map and boxes.
    overlay_count : int
        Pictures drawn, of the first items.
    """

    rule: Rule = "lvs"
    threshold: float = 0.5
    overlays: str | Path | None = None
    overlay_count: int = 16

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise CmcrError(f"There is no rule {self.rule!r}.", todo=f"one of: {', '.join(RULES)}")
        if not 0 <= self.threshold < 1:
            raise CmcrError(f"A threshold is from 0 to below 1, not {self.threshold}.", todo="for example 0.5")


@dataclass(frozen=True)
class LocalizationReport:
    """Figures of one run with 95% bootstrap intervals, what was evaluated, and the keys of items left out."""

    figures: Mapping[str, float | int]
    record: Mapping[str, Any]
    missing: tuple[str, ...] = ()
    interval: Intervals = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record; equal input gives equal content."""
        figures = {"figures": dict(self.figures), "intervals": HOW, "interval": to_json(self.interval)}
        return {**self.record, **figures, "missing": list(self.missing)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LocalizationReport:
        """A report as it was written."""
        own = ("figures", "missing", "intervals", "interval")
        rest = {name: value for name, value in record.items() if name not in own}
        return cls(record["figures"], rest, tuple(record["missing"]), from_json(record["interval"]))

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks: items that were left out."""
        total = len(self.missing) + int(self.figures["items"])
        return (missing_note(self.missing, total),) if self.missing else ()

    def table(self) -> Table:
        """The figures as a table for the terminal, shares in percent."""
        title = f"{str(self.record['protocol']).capitalize()}, percent; rule {self.record['rule']}"
        out: Table = figures_table(title, dict(self.figures))
        return out


def evaluate_localization(
    items: str | Path,
    sounds: Cache | str | Path,
    regions: Cache | str | Path,
    *,
    connector: Connector | str | Path | None = None,
    settings: LocalizationSettings | None = None,
    output: str | Path | None = None,
    device: str | None = None,
    skip_existing: bool = False,
) -> LocalizationReport:
    """Say how well the source of each sound is found in its frame: cIoU at 0.5, AUC and mean cIoU.

    Items without boxes (nothing sounds) are left out here and counted.

    Parameters
    ----------
    items : path
        As for :func:`read_items`.
    sounds : Cache or path
        Rows under the items' ``audio`` keys.
    regions : Cache or path
        What :func:`encode_regions` made.
    connector : Connector or path, optional
        None where both are in one space.
    settings : LocalizationSettings, optional
    output : path, optional
        A JSON file, written atomically.
    device : str, optional
        Where heads run.
    skip_existing : bool
        Return what ``output`` holds where it is of this very subject.

    Raises
    ------
    CmcrError
        No item has its sound and its frame, or none has a box; spaces do not fit.
    """
    chosen = settings or LocalizationSettings()
    return run_protocol("localization", items, (sounds, regions), connector, chosen, output, device, skip_existing)


def run_protocol(
    protocol: Protocol,
    items: str | Path,
    caches: tuple[Cache | str | Path, Cache | str | Path],
    connector: Connector | str | Path | None,
    chosen: LocalizationSettings,
    output: str | Path | None,
    device: str | None,
    skip_existing: bool,
) -> LocalizationReport:
    """Either protocol over sounds and regions; parameters as in :func:`evaluate_localization`."""
    place = check_place(output, skip_existing)
    loaded = None if connector is None else as_connector(connector, device)
    sounds, regions = (SharedView(as_cache(cache), loaded) for cache in caches)
    views = {"sounds": sounds, "regions": regions}
    check_one_space(views, loaded)
    threshold = {} if chosen.rule == "lvs" else {"threshold": chosen.threshold}
    how = {"rule": chosen.rule, **threshold, "list": Path(items).name, "list_digest": digest_of_file(items)}
    record = subject(protocol, loaded, views, how)
    if place is not None and skip_existing and (found := existing_result(place, record)) is not None:
        return LocalizationReport.from_json(found)
    source = MapSource.open(sounds, regions, read_items(items))
    detected = _detect(source, chosen)
    plain = protocol == "localization"
    figures = localization_figures(detected) if plain else counterfactual_figures(detected)
    interval = localization_intervals(detected) if plain else counterfactual_intervals(detected)
    report = LocalizationReport(figures, record, source.missing, interval)
    if place is not None:
        write_result(report.to_json(), place)
    return report


def _detect(source: MapSource, chosen: LocalizationSettings) -> Detection:
    """cIoU and confidence of every item; overlays of the first ones on the way."""
    ciou, sure = np.zeros(len(source.items)), np.zeros(len(source.items))
    for number, (item, scores) in enumerate(source.maps()):
        mask = predicted_mask(scores, chosen.rule, chosen.threshold)
        ciou[number] = consensus_iou(mask, box_map(item.boxes, item.consensus))
        sure[number] = confidence(scores)
        if chosen.overlays is not None and number < chosen.overlay_count:
            from .overlays import overlay

            overlay(item, scores, ciou[number], Path(chosen.overlays))
    return Detection(np.array([item.audible for item in source.items]), ciou, sure)


def localization_figures(found: Detection) -> dict[str, float | int]:
    """Figures over the audible items: cIoU at 0.5 and AUC as in LVS, and the mean."""
    heard = found.ciou[found.audible]
    if not len(heard):
        raise CmcrError("No item has a box, so there is nothing to find.", todo="give the list with annotations")
    return {
        "cIoU@0.5": success_rate(heard),
        "AUC": success_auc(heard),
        "mean cIoU": float(heard.mean()),
        "items": len(found.ciou),
        "audible": len(heard),
    }


def counterfactual_figures(found: Detection) -> dict[str, float | int]:
    """Figures over audible and inaudible items as SLAVC defines them, beside those of the audible ones."""
    if found.audible.all() or not found.audible.any():
        raise CmcrError(
            "A counterfactual test needs sounds with and without a source in the frame; this list has one kind only.",
            todo="give SLAVC's extended list: cmcr evaluate prepare vggss --silent vggss_test_plus_silent.csv",
        )
    silent = len(found.ciou) - int(found.audible.sum())
    return {
        "AP": found.average_precision(),
        "max-F1": found.max_f1(),
        "max-F1 of tenths": found.max_f1_of_tenths(),
        **localization_figures(found),
        "inaudible": silent,
    }
