from __future__ import annotations

import numpy as np
import pytest
from cmcr.cache.two_level import TwoLevelMeans

faiss = pytest.importorskip("faiss")


def test_no_list_spans_two_far_clusters() -> None:
    rng = np.random.default_rng(0)
    clusters = rng.standard_normal((200, 32))
    owner = np.arange(4000) % 200
    rows = (clusters[owner] + 0.02 * rng.standard_normal((4000, 32))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    means = TwoLevelMeans(faiss, rows, 400, 0)
    assert means.count == 400
    lists = means.assign(rows)
    spanned = sum(len(np.unique(owner[lists == number])) > 1 for number in range(means.count))
    assert spanned == 0, f"{spanned} of {means.count} lists hold rows of several of 200 far clusters"
