"""A self-contained HTML page: values in, one string out. Pictures and sounds are embedded: the file can be mailed."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
}


@dataclass(frozen=True)
class Row:
    """One method of a result table: ``bar`` is the length of its bar in percent, ``values`` are printed as they are."""

    method: str
    bar: float
    values: tuple[str, ...]
    role: Literal["", "ours", "paper", "pairs"] = ""


@dataclass(frozen=True)
class HitView:
    """One answer of an example; ``picture`` is a data URI or empty, ``right`` marks the relevant item."""

    label: str
    score: str
    right: bool
    picture: str = ""


@dataclass(frozen=True)
class Example:
    """One query with its answers; ``picture`` and ``sound`` are data URIs or empty; ``words`` lists text answers."""

    label: str
    hits: tuple[HitView, ...]
    picture: str = ""
    picture_alt: str = ""
    sound: str = ""
    words: bool = False


@dataclass(frozen=True)
class TaskReport:
    """One connection: its table, its examples and its training curve."""

    title: str
    lead: str
    bar_measure: str
    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    reading: tuple[str, ...]
    examples_title: str
    examples: tuple[Example, ...]
    examples_note: str = ""
    curve: str = ""
    curve_caption: str = ""


@dataclass(frozen=True)
class Stage:
    """One stage of the run and its wall time in seconds."""

    name: str
    detail: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    subtitle: str
    notice: str
    tasks: tuple[TaskReport, ...]
    stages: tuple[Stage, ...] = ()
    next_lead: str = ""
    next_commands: str = ""


def data_uri(path: Path) -> str:
    """The file as a ``data:`` URI; the media type follows the extension."""
    kind = MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def png_uri(data: bytes) -> str:
    """PNG bytes as a ``data:`` URI."""
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def render(report: Report) -> str:
    """The page as one string without references to other files.

    Parameters
    ----------
    report : Report
        Values; every text is escaped.

    Returns
    -------
    str
        HTML.
    """
    return page("report.html", report=report)


def page(template: str, **values: Any) -> str:
    """A page from one of the package's templates; every text among the values is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)
