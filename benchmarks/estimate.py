"""What a fit and a completion would take on an accelerator, from counted operations and published peaks.

    python benchmarks/estimate.py [--rows 1000000] [--bank 1000000] [--dim 512] [--batch 4096] [--epochs 36]
                                  [--peak 67e12 --reached 45e12 ...]

Nothing is timed. Operations are those of docs/method.md ("What it costs"), a multiplication and an addition counted as
two; tensor operations of a step are counted by running one on the CPU with a small batch. The peaks are those of one
H100 SXM (NVIDIA's data sheet, dense: fp32 67 T/s, bf16 990 T/s, memory 3.35 TB/s), and next to each what a well-shaped
product or pass is taken to reach of it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from cmcr.trainer.settings import FitSettings
from fit import Steps, make_pairs
from torch.utils._python_dispatch import TorchDispatchMode

LAUNCH = 4e-6  # seconds
SCORE_PASSES = 6  # reads and writes of a tile of scores between the two products of a completion
VIEWS = ("view", "t", "transpose", "expand", "slice", "select", "detach", "unsqueeze", "split", "as_strided", "alias")


class Count(TorchDispatchMode):
    """Counts tensor operations that launch something."""

    launched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.launched += func._schema.name.split("::")[1].removeprefix("_") not in VIEWS
        return func(*args, **(kwargs or {}))


def launches() -> int:
    """Tensor operations of a step of c-mcr at the paper's defaults."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = make_pairs(Path(folder), 256, 32)
        steps = Steps(pairs, FitSettings(method="c-mcr", batch_size=128, hidden=64, out_dim=32, epochs=1))
        steps.run()
        with Count() as count:
            steps.run()
    return count.launched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 1_000_000), ("bank", 1_000_000), ("dim", 512), ("hidden", 1024), ("out", 512)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=36)
    for name, value, text in (
        ("peak", 67e12, "published fp32 operations a second, TF32 off"),
        ("fp32", 45e12, "fp32 operations a second reached"),
        ("bf16-fit", 400e12, "bf16 reached by the projectors"),
        ("bf16", 600e12, "bf16 reached by a completion"),
        ("memory", 2.5e12, "bytes a second reached"),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, help=f"{text} ({value:g})")
    o = parser.parse_args()
    steps = o.rows // o.batch * o.epochs
    projectors = 2 * 2 * 2 * o.batch * (2 * o.dim * o.hidden + 3 * o.hidden * o.out)
    logits = 2 * 6 * o.batch**2 * o.out
    parts = {
        f"projectors, {projectors / 1e9:.0f} G a step in bf16": steps * projectors / o.bf16_fit,
        f"logits, {logits / 1e9:.0f} G a step in fp32": steps * logits / o.fp32,
        "traffic of logits": steps * 6 * 2 * o.batch**2 * 4 / o.memory,
        "noise, about 1 GB of temporaries a step": steps * 1.02e9 / o.memory,
    }
    count = launches()
    launching = steps * count * LAUNCH
    say(f"fit: {o.rows:,} items, {o.epochs} epochs of {o.rows // o.batch} steps, batch {o.batch:,}, {o.dim}-d")
    for name, seconds in parts.items():
        say(f"  {name:<48} {seconds:6.1f} s")
    say(f"  {f'launches, {count:,} tensor operations a step':<48} {launching:6.1f} s")
    work = sum(parts.values())
    say(f"  all: {max(work, launching):.0f} s (launches hidden) to {work + launching:.0f} s (nothing overlapped)")
    products = 4 * o.rows * o.bank * o.dim
    traffic = SCORE_PASSES * o.rows * o.bank * 4 / o.memory
    say(f"completion: {o.rows:,} queries on {o.bank:,} bank rows of {o.dim}: {products / 1e15:.2f} P")
    say(f"  the products alone at the published fp32 peak    {products / o.peak:6.1f} s: no exact completion is faster")
    say(f"  exact: products in fp32 and traffic of scores    {products / o.fp32 + traffic:6.1f} s")
    say(f"  bf16: products in bf16 and the same traffic      {products / o.bf16 + traffic:6.1f} s")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
