"""Which worker this is, out of how many: from flags, or from what a scheduler leaves in the environment."""

from __future__ import annotations

from collections.abc import Mapping

from ...cache.errors import RecipeError

# (number, how many, number of the first) as torchrun, Slurm, Open MPI, Kubernetes and PBS name them. An array stands
# before the tasks within a job: each of its jobs has a SLURM_PROCID too. Kubernetes and PBS do not say how many.
VARIABLES = (
    ("RANK", "WORLD_SIZE", None),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("SLURM_PROCID", "SLURM_NTASKS", None),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", None),
    ("JOB_COMPLETION_INDEX", None, None),
    ("PBS_ARRAY_INDEX", None, None),
)


def worker_of(worker: str, workers: int, environment: Mapping[str, str]) -> tuple[int, int]:
    """(number of this worker from 0, number of workers).

    Parameters
    ----------
    worker : str
        A number, or ``auto`` for the first of :data:`VARIABLES` that is set.
    workers : int
        How many; 0 for what the environment says.
    environment : mapping
        ``os.environ``.

    Raises
    ------
    RecipeError
        Nothing says which worker this is, or of how many, or the number is not below their count.
    """
    if worker != "auto":
        return _checked(_number(worker, "--worker"), workers, "--worker")
    for name, size, first in VARIABLES:
        if name not in environment:
            continue
        number = _number(environment[name], name)
        if first is not None:
            number -= _number(environment.get(first, "0"), first)
        count = workers or (_number(environment[size], size) if size is not None and size in environment else 0)
        return _checked(number, count, name)
    raise RecipeError(
        "--worker auto finds no rank in the environment",
        where=", ".join(name for name, _, _ in VARIABLES),
        todo="give --worker I --workers N, or leave both out: workers then share the shards by leases",
    )


def _checked(number: int, count: int, where: str) -> tuple[int, int]:
    if count < 1:
        raise RecipeError("how many workers there are is not said", where=where, todo="add --workers N")
    if not 0 <= number < count:
        raise RecipeError(f"this is worker {number} of {count}; they are numbered from 0", where=where)
    return number, count


def _number(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RecipeError(f"{text!r} is not a whole number", where=where) from None
