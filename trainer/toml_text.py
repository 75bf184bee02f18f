"""TOML text of plain tables; the standard library reads TOML and does not write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_toml(record: Mapping[str, Any]) -> str:
    """TOML text of tables, arrays of tables and plain values, in the order given."""
    lines: list[str] = []
    _emit_table(record, (), lines)
    return "\n".join(lines).strip("\n") + "\n"


def _emit_table(table: Mapping[str, Any], place: tuple[str, ...], lines: list[str]) -> None:
    """Plain values first: a key after a sub-table would belong to that one."""
    for key, value in table.items():
        if not _is_tables(value):
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in table.items():
        name = (*place, key)
        if isinstance(value, Mapping):
            if not value or not all(_is_tables(child) for child in value.values()):
                lines += ["", f"[{'.'.join(map(_key, name))}]"]
            _emit_table(value, name, lines)
        elif _is_tables(value):
            for one in value:
                lines += ["", f"[[{'.'.join(map(_key, name))}]]"]
                _emit_table(one, name, lines)


def _is_tables(value: Any) -> bool:
    several = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(one, Mapping) for one in value)
    return isinstance(value, Mapping) or several


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):  # a JSON string is a TOML one, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
