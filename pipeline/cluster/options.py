"""What a submission asks of the scheduler: settings, checked, before anything is queued."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from ...cache.errors import RecipeError

TIME = "4:00:00"
WARNING_SECONDS = 90  # before the time limit a task is asked to leave
SLURM_ONLY = ("cpus", "memory", "partition", "account", "throttle", "extra")
_TIME = re.compile(r"^(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})$")


@dataclass(frozen=True)
class JobOptions:
    """How many tasks, and what each of them needs.

    Parameters
    ----------
    tasks : int
        Tasks of the job array; each runs the same command.
    cluster : {"slurm", "local"}
        ``local`` starts the tasks as processes of this machine, all of them at once; it has no use for
        :data:`SLURM_ONLY`.
    gpus, cpus : int
        GPUs and cores of one task; 0 leaves cores to the scheduler.
    memory : str
        Of one task, as Slurm writes it: ``32G``.
    partition, account : str
        As the cluster names them; empty for its default.
    time : str
        Longest time of one task, as Slurm writes it: minutes, ``H:MM:SS`` or ``D-HH:MM``. A task that needs longer is
        queued again and goes on.
    throttle : int
        Tasks that run at the same time at most; 0 for all.
    extra : mapping of str to str
        Further options of sbatch, without the dashes; an empty value for a flag.
    setup : sequence of str
        Lines of shell that each task runs first: ``module load cuda``.

    Raises
    ------
    RecipeError
        A number is too small, or ``time`` is no time.
    """

    tasks: int = 1
    cluster: Literal["slurm", "local"] = "slurm"
    gpus: int = 0
    cpus: int = 0
    memory: str = ""
    partition: str = ""
    account: str = ""
    time: str = TIME
    throttle: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)
    setup: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, least in (("tasks", 1), ("gpus", 0), ("cpus", 0), ("throttle", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name} is {getattr(self, name)}; it is at least {least}", where=f"--{name}")
        if self.cluster not in ("slurm", "local"):
            raise RecipeError(f"no cluster is called {self.cluster!r}", where="--cluster", todo="slurm or local")
        _ = self.minutes

    @property
    def minutes(self) -> int:
        """The time limit in minutes, as Slurm rounds it: up."""
        match = _TIME.match(self.time)
        parts = [int(part) for part in match["rest"].split(":")] if match else []
        if match and match["days"] is not None:
            hours, minutes, seconds = [*parts, 0, 0][:3]
            total = (int(match["days"]) * 24 + hours) * 3600 + minutes * 60 + seconds
        elif len(parts) == 3:
            total = parts[0] * 3600 + parts[1] * 60 + parts[2]
        else:
            total = sum(part * unit for part, unit in zip(parts, (60, 1), strict=False))
        if total < 1:
            raise RecipeError(
                f"{self.time!r} is no length of time", where="--time", todo="minutes, H:MM:SS or D-HH:MM, as in 4:00:00"
            )
        return -(-total // 60)

    @property
    def warning_seconds(self) -> int:
        """How long before the time limit a task is asked to leave: 90 seconds, of short limits a third."""
        return min(WARNING_SECONDS, self.minutes * 20)

    def slurm_only(self) -> list[str]:
        """Names of the options that are given and mean nothing to processes of this machine."""
        return [name for name in SLURM_ONLY if getattr(self, name)]

    def for_local(self) -> JobOptions:
        """The same for processes of this machine."""
        plain = JobOptions()
        return replace(self, cluster="local", **{name: getattr(plain, name) for name in SLURM_ONLY})

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "extra": dict(self.extra), "setup": list(self.setup)}

    @classmethod
    def asked(cls, options: Mapping[str, Any], before: JobOptions | None = None) -> JobOptions:
        """Options by name; what is not among them is as ``before``, or as it comes.

        Raises
        ------
        RecipeError
            One of them is unknown.
        """
        names = [f.name for f in fields(cls)]
        for name in options:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                raise RecipeError(
                    f"a submission has no option {name!r}",
                    todo=f"did you mean {near[0]}?" if near else f"it has: {', '.join(names)}",
                )
        return replace(before or cls(), **options)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> JobOptions:
        """The options of a record; fields that this release does not know are passed over."""
        return cls(**{f.name: record[f.name] for f in fields(cls) if f.name in record})


def parse_extra(words: Sequence[str]) -> dict[str, str]:
    """``constraint=a100``, ``--exclusive`` and the like as a mapping."""
    pairs = (word.lstrip("-").partition("=") for word in words)
    found = {name.strip(): value for name, _, value in pairs}
    if "" in found:
        raise RecipeError("an extra option has no name", where="--extra", todo="as in --extra constraint=a100")
    return found
