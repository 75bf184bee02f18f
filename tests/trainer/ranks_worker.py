"""What the tests of several processes run on each of them, and alone: ``torchrun ranks_worker.py WORLD``."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cmcr.cache.errors import FitError
from cmcr.trainer import loop
from cmcr.trainer.batches import Batches
from cmcr.trainer.losses import info_nce, intra
from cmcr.trainer.methods.cmcr import CmcrObjective, make_heads
from cmcr.trainer.methods.ex_mcr import ExMcrObjective
from cmcr.trainer.quadruples import overlap_rows
from cmcr.trainer.ranks import Ranks
from cmcr.trainer.settings import FitSettings

Result = dict[str, np.ndarray]
STEPS, FEW, ROWS, BATCH = 50, 8, 91, 31  # two processes get 15 and 16 rows of a batch
DIMS = {"1": 9, "2": 7}


class Matrix:
    """Rows of a matrix as a row source."""

    def __init__(self, rows: np.ndarray) -> None:
        self.matrix, self.dim = rows, rows.shape[1]

    def __len__(self) -> int:
        return len(self.matrix)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return self.matrix[indices]


class Run:
    """A run in memory."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.lines: list[Mapping[str, Any]] = []

    def log(self, record: Mapping[str, Any]) -> None:
        self.lines.append(record)

    def resume(self) -> None:
        return None

    def save(self, step: int, model: Any, optimiser: Any) -> None:
        pass

    def advance(self, done: int, total: int, record: Mapping[str, Any]) -> None:
        pass


def unit(count: int, dim: int, seed: int, dtype: Any = np.float64) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def pairs_of(dtype: Any, banks: str) -> Any:
    overlap = {name: Matrix(unit(ROWS, dim, int(name), dtype)) for name, dim in DIMS.items()}
    completed = {
        name: Matrix(0.8 * unit(ROWS, dim, 10 + int(name), dtype)) if name in banks else None
        for name, dim in DIMS.items()
    }
    return SimpleNamespace(names=("1", "2"), N=ROWS, overlap=overlap, completed=completed)


FITS: dict[str, dict[str, Any]] = {
    "c-mcr": {"steps": STEPS},
    "c-mcr in float32": {"steps": STEPS, "dtype": np.float32},
    "c-mcr, norms apart": {"bn_pass": "separate", "intra": "squared", "clip_grad": 0.5},
    "c-mcr, half, chunks": {"projector": "half", "chunk": 7, "banks": "1"},
    "c-mcr, a kept space": {"keep": "2", "batch_size": 32},
    "ex-mcr": {"kind": "ex-mcr"},
    "ex-mcr, norms apart": {"kind": "ex-mcr", "bn_pass": "separate", "keep": "1"},
}


def trained(name: str, ranks: Ranks) -> Result:
    """Some steps of a fit: losses and norms of every step, projected vectors, running statistics."""
    changes = dict(FITS[name])
    dtype, kind, steps = changes.pop("dtype", np.float64), changes.pop("kind", "c-mcr"), changes.pop("steps", FEW)
    pairs = pairs_of(dtype, changes.pop("banks", "12"))
    fixed = {"tau2": 0.05, "tau3": 0.07, "hidden": 12, "out_dim": 8, "batch_size": BATCH, "seed": 5, "log_every": 1}
    settings = FitSettings(method=kind, epochs=steps // 2, **{**fixed, **changes})
    batches = Batches(ROWS, settings.batch_size, settings.seed)
    assert batches.per_epoch == 2
    ranks = ranks.sharing(batches.size)
    cpu = torch.device("cpu")
    if kind == "ex-mcr":
        leaf, base = ("2", "1") if settings.keep == "1" else ("1", "2")
        objective: Any = ExMcrObjective(pairs, settings, overlap_rows(pairs, leaf, base), cpu, ranks)
    else:
        objective = CmcrObjective(pairs, settings, make_heads(pairs, settings), cpu, ranks)
    if dtype == np.float64:
        objective.model.double()
    run = Run(ranks)
    loop.train(objective, batches, settings, run)
    assert not any(type(module).__name__ == "SharedBatchNorm" for module in objective.model.modules())
    projected = {}
    for space, head in objective.heads.items():
        with torch.inference_mode():
            rows = head(torch.from_numpy(unit(40, DIMS[space], 99, dtype)))
            projected[f"projected {space}"] = torch.nn.functional.normalize(rows, dim=1).numpy()
    state = {f"state {key}": value.numpy() for key, value in objective.model.state_dict().items()}
    lines = {key: np.array([line[key] for line in run.lines]) for key in run.lines[0]}
    return {**lines, **projected, **state}


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, Ranks], torch.Tensor]] = {
    "info_nce": lambda a, b, ranks: info_nce(a, b, 0.05, ranks=ranks),
    "info_nce in chunks": lambda a, b, ranks: info_nce(a, b, 0.05, chunk=4, ranks=ranks),
    "info_nce, running maxima": lambda a, b, ranks: info_nce(a, b, 2e-4, ranks=ranks),
    "info_nce, running maxima in chunks": lambda a, b, ranks: info_nce(a, b, 2e-4, chunk=4, ranks=ranks),
    "intra": lambda a, b, ranks: intra(a, b, "plain", ranks),
}


def loss_and_gradients(name: str, ranks: Ranks) -> Result:
    """A loss of the whole batch, and its gradient for the rows of this process."""
    ranks = ranks.sharing(BATCH)
    a, b = (torch.from_numpy(unit(BATCH, 6, seed)[ranks.own]).requires_grad_() for seed in (1, 2))
    loss = LOSSES[name](a, b, ranks)
    (3 * loss).backward()
    assert a.grad is not None
    assert b.grad is not None
    return {"loss": loss.detach().numpy(), "a": a.grad.numpy(), "b": b.grad.numpy()}


def command(*arguments: str) -> dict[str, Any]:
    """What a command of the command line prints here, and its exit code."""
    from cmcr import cli

    out, told = io.StringIO(), io.StringIO()
    code, leak = 0, ""
    try:
        with redirect_stdout(out), redirect_stderr(told):
            cli.app(list(arguments), standalone_mode=False)
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception as error:
        code, leak = 1, repr(error)
    return {"code": code, "out": out.getvalue(), "err": told.getvalue(), "leak": leak}


def failing(error: Exception, at: int, rank: int, arguments: list[str]) -> dict[str, Any]:
    """The same command, with a step that fails on one rank."""
    real = loop.train_step

    def step(*given: Any, **more: Any) -> Any:
        if given[3] == at and int(os.environ["RANK"]) == rank:
            raise error
        return real(*given, **more)

    loop.train_step = step
    try:
        return command(*arguments)
    finally:
        loop.train_step = real


def everything(world: Path) -> None:
    """All that the tests look at, in one start of the processes."""
    from cmcr.trainer.rendezvous import joined

    with joined() as ranks:
        for kind, names, run in (("fit", FITS, trained), ("loss", LOSSES, loss_and_gradients)):
            for name in names:
                np.savez(world / f"{kind} {name} {ranks.rank}.npz", **run(name, ranks))
        rank = ranks.rank
    fit = ["fit", "--config", str(world / "recipe.toml")]
    ran = {
        "plan": command(*fit, "--dry-run"),
        "c-mcr": command(*fit, "--output", str(world / "calm")),
        "weave": command(*fit, "--output", str(world / "weave"), "--method", "weave", "--set", "fit.options.steps=8"),
        "procrustes": command(*fit, "--output", str(world / "procrustes"), "--method", "procrustes"),
        "no recipe": command("fit", "--config", str(world / "gone.toml")),
        "failing": failing(FitError("rank 1 has had enough"), 5, 1, [*fit, "--output", str(world / "broken")]),
        "a bug": failing(ZeroDivisionError("a bug"), 5, 1, [*fit, "--output", str(world / "broken")]),
        "the first fails": failing(FitError("0 is tired"), 5, 0, [*fit, "--output", str(world / "broken")]),
        "watched": command("fit", "--config", str(world / "watched.toml"), "--output", str(world / "watched")),
    }
    (world / f"ran {rank}.json").write_text(json.dumps(ran))


def dying(world: Path) -> None:
    """A fit whose second process kills itself at its eighth step, the first time that torchrun starts it."""
    from cmcr import cli

    real = loop.train_step

    def step(*given: Any, **more: Any) -> Any:
        if given[3] == 7 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **more)

    loop.train_step = step
    sys.argv = ["cmcr", "fit", "--config", str(world / "recipe.toml"), "--output", str(world / "torn")]
    cli.main()


if __name__ == "__main__":
    {"everything": everything, "dying": dying}[sys.argv[1]](Path(sys.argv[2]))
