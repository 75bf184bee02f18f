"""What a fit shows while it runs."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from cmcr.pipeline import fit_progress
from cmcr.pipeline.fit_progress import FitBar, fit_detail, fit_pace
from rich.console import Console

RECORD: dict[str, Any] = {
    "step": 5, "lr": 7.5e-4, "loss": 2.5, "loss_overlap": 1.25, "loss_completed": 1.0, "loss_intra": 2.5,
    "grad_norm": 3.0, "samples_per_second": 1234.5, "seconds_left": 75.0,
}  # fmt: skip


def bar(*, terminal: bool) -> tuple[FitBar, io.StringIO]:
    made, out = FitBar(), io.StringIO()
    made._console = Console(file=out, force_terminal=terminal, width=100)
    return made, out


def test_a_record_is_read_out_in_full() -> None:
    assert fit_detail(RECORD) == ("loss 2.5 = overlap 1.25 + completed 1 + intra 2.5, grad 3, lr 0.00075")
    assert fit_pace(RECORD) == "1,234 samples/s, 1 min 15 s left"
    assert fit_detail({"stage": "completion"}) == fit_pace({}) == ""


def test_a_terminal_sees_completion_then_steps_and_lines_stay_above_the_bar() -> None:
    made, out = bar(terminal=True)
    with made:
        for done in (0, 50, 100):
            made(done, 100, {"stage": "completion"})
        made.say("clap: each caption averages 14 sounds")
        made(5, 20, RECORD)
        made(20, 20, RECORD)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "100/100 rows" in text
    assert "20/20 steps" in text
    assert "1 min 15 s left" in text
    assert "overlap 1.25" in text
    assert any(line.strip() == "clap: each caption averages 14 sounds" for line in re.split(r"[\r\n]", text))


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    made, out = bar(terminal=False)
    now = [0.0]
    monkeypatch.setattr(fit_progress.time, "monotonic", lambda: now[0])
    with made:
        for step in range(1, 101):
            now[0] += 1.0
            made(step, 100, RECORD)
    lines = out.getvalue().splitlines()
    assert len(lines) == 5  # at 1, 31, 61, 91 and the end
    assert lines[0].startswith("fit 1/100 steps; 1,234 samples/s")
    assert "\x1b" not in out.getvalue()
