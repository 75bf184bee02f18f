from __future__ import annotations

import pytest
from cmcr.cache import keys
from cmcr.cache.errors import ItemError
from hypothesis import given, settings
from hypothesis import strategies as st


def test_key_rules_as_documented():
    assert keys.line_key("day/captions", 12) == "day/captions:000000012"
    assert keys.stem("dogs/a.b/rex.tar.png") == "dogs/a.b/rex.tar"
    assert keys.stem("a.b/rex") == "a.b/rex"
    assert keys.stem(".hidden") == ".hidden"
    assert keys.stem("ends.") == "ends."
    assert keys.tar_key("shard-0", "000012") == "shard-0/000012"
    assert keys.caption_key("dogs/rex", 4) == "dogs/rex#4"
    assert keys.row_key(7) == "000000007"


@pytest.mark.parametrize("bad", ["", "a\0b", "a\nb", "a\rb", "\ud800", "x" * 1025, "é" * 513])
def test_keys_that_a_cache_cannot_hold_are_refused(bad):
    with pytest.raises(ItemError, match="key"):
        keys.check_key(bad)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_a_key_is_returned_as_it_is_or_refused(text):
    try:
        assert keys.check_key(text) == text
    except ItemError:
        assert not text or any(mark in text for mark in "\0\n\r") or len(text.encode()) > 1024
