"""A comparison as text, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .compare_figures import DamagePart, Figure, Figures, Part
from .eval_sets import readable

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 100
# Columns of one printed table of damage, so that it fits the width.
_ACROSS = 3
_NAME = 8
COLUMNS = (
    "kind", "set", "what", "method", "measure", "seeds", "mean", "sd", "low", "high", "chance", "before", "queries",
    "items",
)  # fmt: skip


def percent(figure: Figure, *, signed: bool = False) -> str:
    """``72.4 ± 0.3 [68.1, 76.2]``: mean and deviation over seeds, interval over queries; no ± for one seed."""
    if signed and max(abs(figure.low), abs(figure.high), figure.sd or 0.0) < 1e-9:
        return "0"  # no query changed
    sign = "+" if signed else ""
    spread = "" if figure.sd is None else f" ± {100 * figure.sd:.1f}"
    return f"{100 * figure.mean:{sign}.1f}{spread} [{100 * figure.low:{sign}.1f}, {100 * figure.high:{sign}.1f}]"


def tables(figures: Figures) -> list[Table | str]:
    """What a terminal of 100 columns shows: each direction of each set, then the damage; best means are bold."""
    shown: list[Table | str] = []
    for part in figures.parts:
        shown += [
            f"{part.name}: {part.title}, percent",
            f"{part.queries:,} queries, {part.items:,} items, {part.about}",
            _part_table(part),
        ]
    for start in range(0, len(figures.damage), _ACROSS):
        if not start:
            shown.append("damage to the source spaces: points that projection wins or loses inside one space")
        shown.append(_damage_table(figures.damage[start : start + _ACROSS]))
    return shown


def text(figures: Figures, more: Sequence[str] = ()) -> str:
    """The tables as plain text, with lines below them."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, highlight=False, legacy_windows=False)
    for one in (*tables(figures), *more):
        if isinstance(one, str):
            console.print(one, markup=False, soft_wrap=True)
        else:
            console.print(one)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _part_table(part: Part) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("method", overflow="fold", min_width=_NAME)  # never squeezed out by figures
    for measure in part.measures:
        table.add_column(readable(measure), justify="right", no_wrap=True)
    table.add_row("chance", *(f"{100 * part.chance[one]:.1f}" for one in part.measures), style="dim", end_section=True)
    for method, found in part.figures.items():
        cells = [(percent(found[one]), found[one].mean == part.best(one)) for one in part.measures]
        shown = [f"[bold]{escape(cell)}[/bold]" if best else escape(cell) for cell, best in cells]
        table.add_row(escape(method), *shown)
    return table


def _damage_table(parts: Sequence[DamagePart]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    cells = {name: [percent(part.change[name], signed=True) for part in parts] for name in parts[0].change}
    table = Table()
    table.add_column("method", overflow="fold", min_width=_NAME)
    for column, part in enumerate(parts):
        width = max(24, *(len(row[column]) for row in cells.values()))
        header = f"{part.name}: {part.task}, {part.queries:,} queries"
        table.add_column(escape(header), justify="right", min_width=width, max_width=width)
    table.add_row("before", *(f"{100 * part.before:.1f}" for part in parts), style="dim")
    table.add_row("chance", *(f"{100 * part.chance:.1f}" for part in parts), style="dim", end_section=True)
    for name, row in cells.items():
        table.add_row(escape(name), *(escape(cell) for cell in row))
    return table


def csv_text(figures: Figures) -> str:
    """Every figure in a line of its own, shares between 0 and 1."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_csv_rows(figures))
    return out.getvalue()


def _csv_rows(figures: Figures) -> Iterator[list[object]]:
    def cells(figure: Figure) -> list[object]:
        sd = "" if figure.sd is None else f"{figure.sd:.6f}"
        return [len(figure.values), f"{figure.mean:.6f}", sd, f"{figure.low:.6f}", f"{figure.high:.6f}"]

    for part in figures.parts:
        for method, found in part.figures.items():
            for measure, figure in found.items():
                yield [
                    "eval", part.name, part.title, method, measure, *cells(figure),
                    f"{part.chance[measure]:.6f}", "", part.queries, part.items,
                ]  # fmt: skip
    for one in figures.damage:
        for measure, by_method in (("after", one.after), ("change", one.change)):
            for method, figure in by_method.items():
                yield [
                    "damage", one.name, f"{one.space}: {one.task}", method, measure, *cells(figure),
                    f"{one.chance:.6f}", f"{one.before:.6f}", one.queries, one.answers,
                ]  # fmt: skip


def latex(figures: Figures) -> str:
    r"""One ``tabular`` in percent with the rules of booktabs (``\usepackage{booktabs}``); best means bold."""
    across = max([len(part.measures) for part in figures.parts] + [1 if figures.damage else 0, 1])
    blocks = [_latex_part(part, across) for part in figures.parts]
    blocks += [_latex_damage(part, across) for part in figures.damage]
    body = "\n\\midrule\n".join(blocks)
    lines = [
        "% mean $\\pm$ standard deviation over seeds [95% bootstrap interval over queries], percent",
        f"\\begin{{tabular}}{{l{'r' * across}}}",
        "\\toprule",
        body,
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_part(part: Part, across: int) -> str:
    title = f"{part.name}: {part.title} ({part.queries:,} queries, {part.items:,} items)"
    rows = [
        f"\\multicolumn{{{across + 1}}}{{l}}{{\\emph{{{_tex(title)}}}}} \\\\",
        _latex_row("method", [readable(one) for one in part.measures], across),
        "\\cmidrule{1-" + str(across + 1) + "}",
        _latex_row("chance", [f"{100 * part.chance[one]:.1f}" for one in part.measures], across),
    ]
    for method, found in part.figures.items():
        cells = []
        for one in part.measures:
            cell = _tex(percent(found[one]))
            cells.append(f"\\textbf{{{cell}}}" if found[one].mean == part.best(one) else cell)
        rows.append(_latex_row(_tex(method), cells, across))
    return "\n".join(rows)


def _latex_damage(part: DamagePart, across: int) -> str:
    title = f"damage, {part.name}: {part.task} inside {part.space}, before {100 * part.before:.1f}"
    rows = [
        f"\\multicolumn{{{across + 1}}}{{l}}{{\\emph{{{_tex(title)}}}}} \\\\",
        _latex_row("method", ["change"], across),
        "\\cmidrule{1-" + str(across + 1) + "}",
    ]
    rows += [_latex_row(_tex(name), [_tex(percent(one, signed=True))], across) for name, one in part.change.items()]
    return "\n".join(rows)


def _latex_row(name: str, cells: Sequence[str], across: int) -> str:
    return " & ".join([name, *cells, *[""] * (across - len(cells))]).rstrip() + " \\\\"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\to$",
}  # fmt: skip


def _tex(plain: str) -> str:
    """Text with every character that LaTeX reads as a command written out."""
    return "".join(_TEX.get(letter, letter) for letter in plain)
