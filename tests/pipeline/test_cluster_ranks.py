"""Ranks from flags and from the environment of schedulers."""

from __future__ import annotations

import pytest
from cmcr.cache.errors import RecipeError
from cmcr.pipeline.cluster.ranks import worker_of


@pytest.mark.parametrize(
    ("environment", "workers", "expected"),
    [
        ({"RANK": "2", "WORLD_SIZE": "4"}, 0, (2, 4)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}, 0, (1, 3)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_PROCID": "0",
            },
            0,
            (2, 4),
        ),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, 0, (0, 2)),
        ({"JOB_COMPLETION_INDEX": "6"}, 8, (6, 8)),
        ({"PBS_ARRAY_INDEX": "0"}, 3, (0, 3)),
    ],
)
def test_auto_reads_what_the_scheduler_says(
    environment: dict[str, str], workers: int, expected: tuple[int, int]
) -> None:
    assert worker_of("auto", workers, environment) == expected


def test_a_number_given_is_taken_as_it_is() -> None:
    assert worker_of("1", 3, {"RANK": "0", "WORLD_SIZE": "9"}) == (1, 3)


@pytest.mark.parametrize(
    ("worker", "workers", "environment"),
    [
        ("auto", 0, {}),
        ("auto", 0, {"JOB_COMPLETION_INDEX": "1"}),
        ("3", 3, {}),
        ("-1", 3, {}),
        ("one", 3, {}),
        ("0", 0, {}),
    ],
)
def test_a_rank_that_cannot_be_is_refused(worker: str, workers: int, environment: dict[str, str]) -> None:
    with pytest.raises(RecipeError):
        worker_of(worker, workers, environment)
