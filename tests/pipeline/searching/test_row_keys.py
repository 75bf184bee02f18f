"""Keys of answers, held in memory or read from the shards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cmcr.cache.reader import Cache
from cmcr.pipeline.searching import row_keys
from cmcr.pipeline.searching.row_keys import RowKeys


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_keys_stand_where_their_rows_do_held_or_not(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(row_keys, "HELD_BYTES", limit)
    names = [f"{'über' if n % 3 else 'x'}/{'n' * (n % 7)}{n}" for n in range(61)]  # widths differ between shards
    gallery = make_cache("images", 61, shards=(20, 0, 30, 11), keys=names)
    keys = RowKeys(gallery)
    rows = np.random.default_rng(0).integers(0, 61, (5, 7))
    for _ in range(2):
        assert keys.lines(rows) == [[names[row] for row in line] for line in rows.tolist()]
    assert keys.lines(np.empty((0, 3), np.int64)) == []
    assert keys.lines(np.empty((2, 0), np.int64)) == [[], []]
