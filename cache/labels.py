"""Keys and captions for vectors that somebody else made, read in step with the rows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import keys as key_rules
from .arrays import ArrayFile
from .errors import CorpusError, ItemError, MissingExtraError

KEY_COLUMNS = ("image_path", "url", "key")


@dataclass
class Labels:
    """Keys, captions, sources and records of a stretch of rows."""

    keys: list[str]
    captions: list[str | None] | None = None
    sources: list[str | None] | None = None
    meta: list[dict[str, Any] | None] | None = None


class _Label(NamedTuple):
    """What stands about one row; ``meta`` holds the fields that are neither key nor caption."""

    key: str
    caption: str | None = None
    meta: dict[str, Any] | None = None


@dataclass(frozen=True)
class LabelSource:
    """Where the keys and captions of one array stand."""

    keys: str | Path
    key_field: str = "id"
    captions: Path | None = None
    caption_field: str | None = None

    def read(self, array: ArrayFile, size: int) -> Iterator[Labels]:
        """Labels of ``size`` rows at a time; checks that there are as many as rows."""
        keys = self._keys(array)
        captions = iter(_lines(self.captions)) if self.captions is not None else None
        for start in range(0, array.rows, size):
            count = min(size, array.rows - start)
            found = list(itertools.islice(keys, count))
            texts: list[str | None] | None = None
            if captions is not None:
                texts = list(itertools.islice(captions, count))
                _require(len(texts) == count, self.captions, start + len(texts), array)
            elif self.caption_field is not None:
                texts = [label.caption for label in found]
            _require(len(found) == count, self.keys, start + len(found), array)
            records = [label.meta for label in found] if any(label.meta for label in found) else None
            yield Labels([label.key for label in found], texts, meta=records)
        for rest, file in ((keys, self.keys), (captions, self.captions)):
            if rest is not None and next(rest, None) is not None:
                _require(False, file, array.rows + 1 + sum(1 for _ in rest), array)

    def _keys(self, array: ArrayFile) -> Iterator[_Label]:
        if str(self.keys) == "rows":
            return (_Label(key_rules.row_key(row)) for row in range(array.rows))
        if str(self.keys) == "lines":
            if self.captions is None:
                raise CorpusError(
                    "Keys by line need the file of captions.", todo="give --captions FILE.txt, or --keys rows"
                )
            stem = self.captions.stem
            return (_Label(key_rules.line_key(stem, row + 1)) for row in range(array.rows))
        file = Path(self.keys)
        if file.suffix in (".jsonl", ".ndjson"):
            return self._records(file)
        return (_Label(_checked(line, file, number)) for number, line in enumerate(_lines(file), 1))

    def _records(self, file: Path) -> Iterator[_Label]:
        for number, line in enumerate(_lines(file), 1):
            try:
                record = json.loads(line, parse_constant=_refuse)
            except ValueError as error:
                raise CorpusError(f"This line is not JSON ({error}).", where=f"{file}:{number}") from error
            if not isinstance(record, dict) or record.get(self.key_field) is None:
                have = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise CorpusError(
                    f"This line has no field {self.key_field!r}; it has {have}.",
                    where=f"{file}:{number}",
                    todo="name the field of the key with --key-field",
                )
            caption = record.get(self.caption_field) if self.caption_field is not None else None
            rest = {name: value for name, value in record.items() if name not in (self.key_field, self.caption_field)}
            key = _checked(str(record[self.key_field]), file, number)
            yield _Label(key, None if caption is None else str(caption), rest or None)


def _checked(key: str, file: Path, line: int) -> str:
    try:
        return key_rules.check_key(key)
    except ItemError as error:
        raise CorpusError(error.what, where=f"{file}:{line}") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no value of JSON")


def _require(condition: bool, file: str | Path | None, found: int, array: ArrayFile) -> None:
    if not condition:
        raise CorpusError(
            f"{found} lines for {array.rows} rows.", where=f"{file} for {array.path}", todo="one line a row"
        )


def _lines(file: Path) -> Iterator[str]:
    """Lines of a UTF-8 file without their line ends; only line feeds end a line."""
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield line.rstrip("\n").removesuffix("\r")
    except OSError as error:
        raise CorpusError(f"The file cannot be read: {error.strerror}.", where=str(file)) from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"The file is not UTF-8 ({error.reason} at byte {error.start}).", where=str(file)) from error


def parquet_labels(
    array: ArrayFile, metadata: Path | None, first: int, size: int, key_column: str | None
) -> Iterator[Labels]:
    """Labels of one part of a clip-retrieval folder, ``size`` rows at a time.

    ``first`` is the number of the part's first row in the whole, the key of rows without a better one.
    """
    if metadata is None:
        for start in range(0, array.rows, size):
            stop = min(start + size, array.rows)
            yield Labels([key_rules.row_key(first + row) for row in range(start, stop)])
        return
    file = _open_parquet(metadata)
    have = file.schema_arrow.names
    column = key_column or next((name for name in KEY_COLUMNS if name in have), None)
    if key_column is not None and key_column not in have:
        raise CorpusError(f"The metadata has no column {key_column!r}; it has {', '.join(have)}.", where=str(metadata))
    if file.metadata.num_rows != array.rows:
        raise CorpusError(
            f"{file.metadata.num_rows} rows of metadata for {array.rows} vectors.", where=f"{metadata}, {array.path}"
        )
    source = next((name for name in KEY_COLUMNS[:2] if name in have), None)
    names = [name for name in dict.fromkeys((column, source, "caption")) if name is not None and name in have]
    rows = _parquet_rows(file, names, array.rows)
    for start in range(0, array.rows, size):
        records = list(itertools.islice(rows, size))
        keys = []
        for row, record in enumerate(records, first + start):
            value = record.get(column) if column is not None else None
            keys.append(
                key_rules.row_key(row) if value in (None, "") else _checked(str(value), metadata, row - first + 1)
            )
        captions = [record["caption"] for record in records] if "caption" in names else None
        yield Labels(keys, captions, [record[source] for record in records] if source is not None else None)


def _open_parquet(file: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet metadata needs pyarrow.", where=str(file), todo='pip install "cmcr[parquet]"'
        ) from error
    import pyarrow

    try:
        return parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise CorpusError(f"The metadata cannot be read: {error}.", where=str(file)) from error


def _parquet_rows(file: Any, names: list[str], count: int) -> Iterator[dict[str, Any]]:
    if not names:
        yield from ({} for _ in range(count))
        return
    for batch in file.iter_batches(batch_size=8192, columns=names):
        yield from batch.to_pylist()
