"""Localization with silent and mismatched sounds: a method has to say that nothing in the frame sounds."""

from __future__ import annotations

from pathlib import Path

from ...cache.reader import Cache
from ...trainer.connector import Connector
from .localization import LocalizationReport, LocalizationSettings, run_protocol


def evaluate_counterfactual(
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
    """AP and max-F1 over items with and without a source in the frame, as SLAVC defines them.

    Mo and Morgado 2022, section 5.1; code: stoneMo/SLAVC, utils.py, ``EvaluatorFull``. The confidence of an item is the
    mean of the highest quarter of its map. Parameters and errors as in
    :func:`cmcr.pipeline.evaluation.localization.evaluate_localization`; the rule is ``slavc`` where none is given.
    """
    chosen = settings or LocalizationSettings(rule="slavc")
    return run_protocol("counterfactual", items, (sounds, regions), connector, chosen, output, device, skip_existing)
