"""Two-level k-means through FAISS: L means at the cost of about 2 √L comparisons a row.

First means are drawn by k-means++ (Arthur and Vassilvitskii 2007). Means drawn uniformly leave some far clusters
without one; the lists that then hold several are wide, and what they hold for a query is predicted wrongly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .vectors import Float32

_ITERATIONS = 20


class TwoLevelMeans:
    """Means of means: a row goes to its nearest coarse mean, then to the nearest fine mean of that one.

    Parameters
    ----------
    faiss : module
    sample : array (S, D) float32
        Rows to train on.
    count : int
        Fine means, S at most; each coarse mean gets its share by its rows.
    seed : int
        One seed gives one result, on one machine with one number of threads.
    """

    def __init__(self, faiss: Any, sample: Float32, count: int, seed: int) -> None:
        self._faiss = faiss
        self._coarse = self._means(sample, max(1, round(count**0.5)), seed)
        owner = self._nearest(self._coarse, sample)
        members = np.bincount(owner, minlength=len(self._coarse))
        wanted = np.clip(np.round(members * count / len(sample)).astype(np.int64), 1, np.maximum(members, 1))
        self._first = np.concatenate([[0], np.cumsum(wanted)])  # of each coarse mean's fine ones
        self._fine = [
            self._means(sample[owner == n], int(wanted[n]), seed + 1 + n) if members[n] else self._coarse[n : n + 1]
            for n in range(len(self._coarse))
        ]

    @property
    def count(self) -> int:
        """Fine means in all."""
        return int(self._first[-1])

    def assign(self, rows: Float32) -> npt.NDArray[np.int64]:
        """The fine mean of each row: (B,)."""
        coarse = self._nearest(self._coarse, rows)
        owner = np.empty(len(rows), np.int64)
        for number in np.unique(coarse).tolist():
            here = np.flatnonzero(coarse == number)
            owner[here] = self._first[number] + self._nearest(self._fine[number], rows[here])
        return owner

    def _means(self, rows: Float32, count: int, seed: int) -> Float32:
        if count >= len(rows):
            return rows.copy()
        most = max(1, -(-len(rows) // count))
        gpu = hasattr(self._faiss, "StandardGpuResources") and self._faiss.get_num_gpus() > 0
        kmeans = self._faiss.Kmeans(
            rows.shape[1], count, niter=_ITERATIONS, seed=seed % 2**31, min_points_per_centroid=1,
            max_points_per_centroid=most, gpu=gpu, init_method=self._faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        )  # fmt: skip
        kmeans.train(np.ascontiguousarray(rows))
        return np.asarray(kmeans.centroids, np.float32).reshape(count, rows.shape[1])

    def _nearest(self, means: Float32, rows: Float32) -> npt.NDArray[np.int64]:
        index = self._faiss.IndexFlatL2(means.shape[1])
        index.add(np.ascontiguousarray(means))
        return np.asarray(index.search(np.ascontiguousarray(rows), 1)[1][:, 0], np.int64)
