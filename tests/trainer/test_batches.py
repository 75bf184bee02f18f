from __future__ import annotations

import numpy as np
from cmcr.trainer.batches import Batches


def test_an_epoch_reads_each_row_at_most_once_and_drops_the_last_partial_batch() -> None:
    batches = Batches(rows=103, batch_size=20, seed=4)
    assert (batches.size, batches.per_epoch) == (20, 5)
    seen = np.concatenate([batches.order(0)[batches.slice_of(step)[1]] for step in range(5)])
    assert len(seen) == len(set(seen.tolist())) == 100
    assert set(seen.tolist()) <= set(range(103))


def test_a_small_data_set_is_one_batch() -> None:
    batches = Batches(rows=50, batch_size=4096, seed=0)
    assert (batches.size, batches.per_epoch) == (50, 1)
    assert sorted(batches.order(3).tolist()) == list(range(50))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    one, again, other = Batches(500, 10, 1), Batches(500, 99, 1), Batches(500, 10, 2)
    assert np.array_equal(one.order(7), again.order(7))
    assert not np.array_equal(one.order(7), one.order(8))
    assert not np.array_equal(one.order(7), other.order(7))


def test_a_step_knows_its_place_without_history() -> None:
    batches = Batches(rows=100, batch_size=30, seed=0)
    assert [batches.slice_of(step) for step in (0, 2, 3, 7)] == [
        (0, slice(0, 30)),
        (0, slice(60, 90)),
        (1, slice(0, 30)),
        (2, slice(30, 60)),
    ]
