"""Caption files that lie beside media files: ``a.txt`` next to ``a.jpg`` holds the captions of the item ``a``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ...cache.keys import caption_key, stem
from ...cache.ledger import Failure
from ..encoders.base import Item
from .columns import caption_problem
from .folders import FilesSource, load_file


@dataclass(frozen=True)
class CaptionFilesSource(FilesSource):
    """A run of caption files: keys are those of the media files, ``key#0`` ... where one has several lines."""

    _counts: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    def keys_of(self, path: str) -> list[str]:
        """One key for each caption; one for a file that has none, which becomes a failure."""
        if path not in self._counts:
            found = load_file(self.place, path, self.settings.max_item_bytes)
            self._counts[path] = 1 if isinstance(found, Failure) else len(_lines(found))
        return _keys(stem(path), self._counts[path])

    def items_of(self, path: str, data: bytes) -> Iterator[Item | Failure]:
        """The captions of a file, in order."""
        return captions_in(data, Item(stem(path), "", name=path, source=path))


def captions_in(data: bytes, model: Item) -> Iterator[Item | Failure]:
    """Items like ``model``, one for each line of a caption file that is not blank; at least one item or failure."""
    lines = _lines(data)
    for key, line in zip(_keys(model.key, len(lines)), lines, strict=True):
        try:
            caption = line.decode("utf-8")
        except UnicodeDecodeError as error:
            message = f"{model.name}: not UTF-8 at byte {error.start} of the caption"
            yield Failure(key, "read", "UnicodeDecodeError", message)
            continue
        if problem := caption_problem(caption):
            yield Failure(key, "read", "BadCaption", f"{model.name}: {problem}")
        else:
            yield replace(model, key=key, data=caption, caption=caption)


def _keys(key: str, count: int) -> list[str]:
    return [key] if count == 1 else [caption_key(key, number) for number in range(count)]


def _lines(data: bytes) -> list[bytes]:
    """The lines of a caption file that are not blank; one blank line for a file without any."""
    lines = (line.rstrip(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    return [line for line in lines if line.strip()] or [b""]
