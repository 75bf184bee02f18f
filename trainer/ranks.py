"""The processes that train one connector together, and what they tell each other; one process is the ordinary case.

A batch is the same for any number of processes: each holds a run of its rows (:attr:`Ranks.own`). Every loss is the
loss of the whole batch and stands on each process, and autograd there gives the gradient through that process's rows,
so the gradient of a parameter is the sum over processes. ``docs/cluster.md`` has the rules.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..cache.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PLACE_IN_SOURCE = re.compile(r"^\[[^\]]*\]\s*")  # gloo begins its messages with file and line


class Ranks:
    """One process, which holds every row and has nobody to wait for.

    ``rank`` is the number of this process, ``size`` how many there are.
    """

    rank = 0
    size = 1
    own = slice(None)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and talks to people."""
        return self.rank == 0

    def sharing(self, rows: int) -> Ranks:
        """These processes with a batch of so many rows among them; :attr:`own` is then the part of this one.

        Raises
        ------
        FitError
            There are fewer rows than processes.
        """
        return self

    def rows_of(self, rows: Tensor) -> int:
        """Rows of the batch, B, of which ``rows`` are those of this process."""
        return len(rows)

    def first(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns on the first process, on all of them; plain JSON. The others wait as long as it takes.

        A failure there ends the wait.
        """
        return work()

    def announce(self, stage: str) -> None:
        """Say, on the first process, that a stage is done."""

    def await_first(self, stage: str) -> None:
        """Wait, on another process, until the first one has announced this stage, as long as it takes."""

    def meet(self) -> None:
        """Wait until every process is here, as long as it takes."""

    def agree(self, what: str, value: Any, todo: str) -> None:
        """Refuse to go on where ``value`` is another one here than on the first process."""

    def check_device(self, device: torch.device) -> None:
        """Refuse a device that the processes cannot train on together."""

    def gather(self, rows: Tensor) -> Tensor:
        """All rows of the batch (B, D) from those of each process (n, D); without gradient."""
        return rows

    def own_of_sum(self, rows: Tensor) -> Tensor:
        """Sum over processes of a tensor for all rows (B, D), of which this process gets its own (n, D)."""
        return rows

    def sum_(self, value: Tensor) -> Tensor:
        """Sum over processes, in place; without gradient."""
        return value

    def largest(self, value: Tensor) -> Tensor:
        """Largest over processes, element by element; without gradient."""
        return value

    def log_sum(self, logs: Tensor) -> Tensor:
        """log Σ exp over processes, element by element; without gradient."""
        return logs

    def all_true(self, here: bool) -> bool:
        """Whether it holds on every process."""
        return here

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the rows of the batch, from a value for each row here (n,): a scalar, with gradient."""
        return values.mean()

    def sum_gradients(self, model: nn.Module) -> None:
        """Make the gradient of every parameter the sum over processes."""


ALONE = Ranks()


class Board(Protocol):
    """Words that processes leave for each other, beside the collectives: waiting here has no time limit."""

    def first(self, leads: bool, work: Callable[[], Any]) -> Any: ...
    def meet(self) -> None: ...


class SeveralRanks(Ranks):
    """Several processes, joined in torch.distributed's default group.

    Parameters
    ----------
    rank, size : int
    board : Board
    host : str
        Name of this machine, for messages.
    local : (int, int)
        Number of this process among those of this machine, and how many they are.
    """

    def __init__(self, rank: int, size: int, board: Board, host: str = "", local: tuple[int, int] = (0, 1)) -> None:
        self.rank, self.size, self.host, self.local = rank, size, host, local
        self._board = board
        self._lengths: Sequence[int] = ()

    def sharing(self, rows: int) -> SeveralRanks:
        """These processes with a batch among them: process r has rows r·B/R to (r + 1)·B/R, rounded down."""
        if rows < self.size:
            raise FitError(
                f"a batch of {rows} rows cannot be shared among {self.size} processes",
                where="fit.batch_size",
                todo="start fewer processes, or give a larger batch_size",
            )
        bounds = [rows * number // self.size for number in range(self.size + 1)]
        shared = copy.copy(self)
        shared._lengths = [stop - start for start, stop in pairwise(bounds)]
        shared.own = slice(bounds[self.rank], bounds[self.rank + 1])
        return shared

    def rows_of(self, rows: Tensor) -> int:
        return sum(self._lengths)

    def first(self, work: Callable[[], Any]) -> Any:
        return self._board.first(self.leads, work)

    def announce(self, stage: str) -> None:
        self.first(lambda: stage)

    def await_first(self, stage: str) -> None:
        found = self.first(lambda: stage)
        assert found == stage, f"{found} is not {stage}: the processes are not at the same place"

    def meet(self) -> None:
        self._board.meet()

    def agree(self, what: str, value: Any, todo: str) -> None:
        told = self.first(lambda: value)
        if told != value:
            raise FitError(
                f"{what}: rank {self.rank} sees {value!r} where rank 0 sees {told!r}", where=self.host, todo=todo
            )
        self.meet()  # nobody goes on before all agree

    def check_device(self, device: torch.device) -> None:
        number, count = self.local
        todo = "give --device cuda with as many processes on a machine as it has GPUs, or --device cpu"
        if device.type == "mps":
            raise FitError("mps has no collectives, so several processes cannot share a fit on it", todo=todo)
        if device.type != "cuda":
            return
        if device.index is not None and count > 1:
            raise FitError(
                f"{count} processes on {self.host} would all compute on {device}", where="fit.device", todo=todo
            )
        if device.index is None and number >= torch.cuda.device_count():
            raise FitError(
                f"{count} processes on {self.host} for {torch.cuda.device_count()} GPUs", where="fit.device", todo=todo
            )

    def gather(self, rows: Tensor) -> Tensor:
        most = max(self._lengths)
        sent = rows.contiguous() if len(rows) == most else F.pad(rows, (0, 0, 0, most - len(rows)))  # (most, D)
        parts = [torch.empty_like(sent) for _ in self._lengths]
        self._collective(lambda: dist.all_gather(parts, sent))
        return torch.cat([part[:length] for part, length in zip(parts, self._lengths, strict=True)])  # (B, D)

    def own_of_sum(self, rows: Tensor) -> Tensor:
        return self.sum_(rows)[self.own]

    def sum_(self, value: Tensor) -> Tensor:
        self._collective(lambda: dist.all_reduce(value))
        return value

    def largest(self, value: Tensor) -> Tensor:
        largest = value.clone()
        self._collective(lambda: dist.all_reduce(largest, op=dist.ReduceOp.MAX))
        return largest

    def log_sum(self, logs: Tensor) -> Tensor:
        top = self.largest(logs)
        return self.sum_(torch.exp(logs - top)).log_().add_(top)

    def all_true(self, here: bool) -> bool:
        return float(self.sum_(torch.tensor(0.0 if here else 1.0))) == 0.0

    def mean(self, values: Tensor) -> Tensor:
        mean: Tensor = _Mean.apply(values, self, sum(self._lengths))  # type: ignore[no-untyped-call]
        return mean

    def sum_gradients(self, model: nn.Module) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not gradients:
            return
        flat = self.sum_(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, summed in zip(gradients, parts, strict=True):
            gradient.copy_(summed.view_as(gradient))

    def _collective(self, call: Callable[[], Any]) -> None:
        """Run one collective; a process that is gone, or silent beyond the time limit, is a FitError."""
        try:
            call()
        except RuntimeError as error:  # what gloo and NCCL raise has no type of its own
            told = _PLACE_IN_SOURCE.sub("", (str(error).splitlines() or [repr(error)])[0]).partition(". This is")[0]
            raise FitError(
                "a process of this fit is gone or does not answer",
                where=f"rank {self.rank} of {self.size} on {self.host}: {told}",
                todo="see why it ended, then run the same command again: it goes on from the last checkpoint",
            ) from error


class _Mean(torch.autograd.Function):
    """Mean over all rows of the batch, which stands on every process: (n,) -> scalar."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: SeveralRanks, rows: int) -> Tensor:
        ctx.rows, ctx.count = rows, len(values)
        return ranks.sum_(values.sum()) / rows

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        # the mean is one number that all processes hold, not one for each: its gradient is not summed
        return (grads[0] / ctx.rows).expand(ctx.count), None, None
