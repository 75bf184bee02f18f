from __future__ import annotations

import sys
from typing import Any

from cmcr.trainer.toml_text import to_toml
from hypothesis import given, settings
from hypothesis import strategies as st

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(texts, values, max_size=4))
def test_what_is_written_reads_back(record: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(record)) == record


def test_tables_are_written_as_people_write_them() -> None:
    record = {"space": {"clap": {"overlap": "a", "bank": ["b"]}}, "fit": {"lr": 0.001}, "eval": [{"name": "x"}]}
    assert to_toml(record) == (
        '[space.clap]\noverlap = "a"\nbank = ["b"]\n\n[fit]\nlr = 0.001\n\n[[eval]]\nname = "x"\n'
    )
