"""Sizes as people write them."""

from __future__ import annotations

import pytest
from cmcr.cache.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"), [("1GB", 10**9), ("512 MB", 512 * 10**6), ("2.5k", 2500), ("77", 77), ("1GiB", 10**9), (5, 5)]
)
def test_sizes_are_read_in_decimal_units(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "nan", "1e9", "64 hours", "1GB2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)
