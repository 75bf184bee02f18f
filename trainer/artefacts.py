"""What a fit leaves for people to look at: the training curve, the TensorBoard log and the model card.

Equal metrics give equal bytes: no time, host or software version stands in any of the files.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.fsio import make_folder, write_atomic
from .card import model_card

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["model_card", "read_metrics", "write_curve", "write_events"]

EVENT_FILE = "events.out.tfevents.0.cmcr"
Records = Sequence[Mapping[str, Any]]

_TOTAL = "loss"
_PART = "loss_"
_LABELS = {"loss": "total", "loss_overlap": "overlap", "loss_completed": "completed", "loss_intra": "intra"}
_INK, _GRID = "#333333", "#dddddd"
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe and Ito: safe for the colour-blind


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that have a step, in order; none where the file is empty or missing."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [record for record in records if isinstance(record.get("step"), int)]


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line but its step."""
    return {
        name: float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _series(records: Records) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values by name, in order of first appearance."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        for name, value in _numbers(record).items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(int(record["step"]))
            values.append(value)
    return series


def write_curve(metrics: Path, png: Path, *, title: str = "") -> bool:
    """Draw the losses over the steps, learning rate and gradient norm below them, and the looks at a validation pair.

    Returns False, and writes nothing, where there are no steps: a method in closed form has no curve.
    """
    series = _series(read_metrics(metrics))
    losses = [name for name in series if name == _TOTAL or name.startswith(_PART)]
    if not losses:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    below = [name for name in ("lr", "grad_norm") if name in series]
    panels = 1 + bool(below) + ("validation" in series)
    rows = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=[3, 1, 1][:panels])
    axes: list[Axes] = list(rows[:, 0])
    _draw_losses(axes[0], {name: series[name] for name in losses})
    if below:
        _draw_below(axes[1], {name: series[name] for name in below})
    if "validation" in series:
        _draw_validation(axes[-1], *series["validation"])
    axes[-1].set_xlabel("step", color=_INK)
    if title:
        axes[0].set_title(title, loc="left", fontsize=12, color=_INK)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    write_atomic(png, data.getvalue())
    return True


def _tidy(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    axes.margins(x=0.01)


def _draw_losses(axes: Axes, losses: Mapping[str, tuple[list[int], list[float]]]) -> None:
    """The total in black, its parts in colours; the legend gives the last values."""
    _tidy(axes)
    colours = iter(_COLOURS * len(losses))
    for name, (steps, values) in losses.items():
        total = name == _TOTAL
        label = f"{_LABELS.get(name, name.removeprefix(_PART))}  {values[-1]:.3g}"
        style: dict[str, Any] = {"color": _INK if total else next(colours), "linewidth": 2.2 if total else 1.5}
        axes.plot(steps, values, label=label, marker="o" if len(steps) == 1 else None, **style)
    axes.set_ylim(bottom=min(0.0, *(min(values) for _, values in losses.values())))
    axes.set_ylabel("loss", color=_INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, title="last value", title_fontsize=8, alignment="left")


def _draw_below(axes: Axes, series: Mapping[str, tuple[list[int], list[float]]]) -> None:
    """Learning rate on the left axis, gradient norm on the right one."""
    _tidy(axes)
    names = {"lr": "learning rate", "grad_norm": "gradient norm"}
    for place, (name, (steps, values)) in enumerate(series.items()):
        side = axes if place == 0 else axes.twinx()
        if place:
            _tidy(side)
            side.grid(visible=False)
        side.plot(steps, values, color=_COLOURS[3 + place], linewidth=1.5)
        side.set_ylim(bottom=0)
        side.set_ylabel(names[name], color=_COLOURS[3 + place], fontsize=9)
        side.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
        side.yaxis.get_offset_text().set_fontsize(8)


def _draw_validation(axes: Axes, steps: list[int], scores: list[float]) -> None:
    """The looks at the validation pair, the best one marked: its weights are the ones that were kept."""
    _tidy(axes)
    best = max(range(len(scores)), key=lambda i: (scores[i], -steps[i]))
    axes.plot(steps, scores, color=_COLOURS[2], linewidth=1.5, marker=".")
    axes.plot(steps[best], scores[best], marker="o", color=_INK, linestyle="none")
    axes.annotate(f" kept: step {steps[best]}", (steps[best], scores[best]), fontsize=8, color=_INK, va="bottom")
    axes.set_ylabel("validation mAP", color=_COLOURS[2], fontsize=9)


def write_events(metrics: Path, folder: Path) -> bool:
    """Write the metrics as a TensorBoard event file of a fixed name; the wall time of an event is its step.

    Returns False, and writes nothing, where there are no steps.
    """
    records = read_metrics(metrics)
    if not records:
        return False
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    data = io.BytesIO()
    writer = RecordWriter(data)
    writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString(deterministic=True))
    for record in records:
        step = int(record["step"])
        values = [Summary.Value(tag=_tag(name), simple_value=value) for name, value in _numbers(record).items()]
        event = Event(wall_time=float(step), step=step, summary=Summary(value=values))
        writer.write(event.SerializeToString(deterministic=True))
    make_folder(folder)
    write_atomic(folder / EVENT_FILE, data.getvalue())
    return True


def _tag(name: str) -> str:
    """``loss_overlap`` becomes ``loss/overlap``, so that TensorBoard shows the losses together."""
    if name == _TOTAL:
        return "loss/total"
    return f"loss/{name.removeprefix(_PART)}" if name.startswith(_PART) else name
