from __future__ import annotations

import pytest
from cmcr.cache import keys
from cmcr.cache.errors import ItemError
from hypothesis import given, settings
from hypothesis import strategies as st


def test_key_rules_as_documented():
    assert keys.text_line_key("day/captions", 12) == "day/captions:000000012"
    assert keys.file_key("dogs/a.b/rex.tar.png") == "dogs/a.b/rex.tar"
    assert keys.file_key(".hidden") == ".hidden"
    assert keys.tar_key("shard-0", "000012") == "shard-0/000012"
    assert keys.caption_key("dogs/rex", 4) == "dogs/rex#4"
    assert keys.row_key(7) == "000000007"


@pytest.mark.parametrize(
    ("value", "key"),
    [("a b", "a b"), (7, "7"), (7.0, "7"), (7.5, "7.5"), (None, "t:000000003"), ("", "t:000000003"), (0, "0")],
)
def test_a_table_key_is_its_column_else_the_line(value, key):
    assert keys.table_key("t", 3, value) == key


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
