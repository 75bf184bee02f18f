"""What the command line says of a result: values in, lines out. Printing itself stays in cli.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ..cache.derived import DerivedPlan
    from ..cache.reader import Cache
    from ..cache.verify import RepairReport, VerifyReport
    from ..trainer.completed_cache import CompletionReport
    from ..trainer.connector import Connector
    from ..trainer.fit import FitResult
    from ..trainer.plan_fit import FitPlan, SpacePlan
    from .encoding.config import DryRun, EncodeReport
    from .project import ProjectReport

LISTED = 5


def duration(seconds: float) -> str:
    """Seconds as people say them: ``8.1 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    shown = ", ".join(every[:LISTED])
    return shown if len(every) <= LISTED else f"{shown} and {len(every) - LISTED:,} more"


def shards(count: int, what: str = "") -> str:
    """``1 new shard``, ``14 new shards``."""
    return f"{count:,} {what}{' ' if what else ''}shard{'' if count == 1 else 's'}"


def encode_lines(report: EncodeReport) -> list[str]:
    """What an encode run did, its failures by kind, and where to look."""
    lines = [
        f"{report.rows:,} rows in {shards(report.shards_now, 'new')} of {report.output}"
        f" ({report.encoder}, {report.dim}-d, {report.rate:,.0f} items/s, {duration(report.seconds)})"
    ]
    if report.shards_now == 0:
        lines = [f"nothing to do: {report.output} is complete for these inputs ({report.encoder}, {report.dim}-d)"]
    if report.shards_before:
        lines.append(f"done before and not encoded again: {shards(report.shards_before)}")
    if report.failed:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in report.errors.items())
        lines.append(f"{report.failed:,} items failed ({kinds}); each is a line of {report.output}/errors")
    if report.remarks:
        lines.append(f"{report.remarks:,} remarks in {report.output}/errors")
    if report.truncated:
        lines.append(f"{report.truncated:,} texts were longer than the encoder's context and were cut")
    return lines + _sources(report.changed, report.vanished) + list(report.notes)


def dry_run_lines(plan: DryRun) -> list[str]:
    """What an encode run would do."""
    time = "unknown" if plan.seconds is None else duration(plan.seconds)
    lines = [
        f"plan for {plan.output}: {shards(plan.shards_now)} to encode, {plan.shards_before:,} done",
        f"rows {plan.rows:,}" + (f" and {plan.uncounted} archives not counted yet" if plan.uncounted else ""),
        f"disk about {size(plan.disk_bytes)}, time about {time} ({plan.encoder}, {plan.dim}-d)",
        "nothing was written",
    ]
    return lines + _sources(plan.changed, plan.vanished) + list(plan.notes)


def _sources(changed: tuple[str, ...], vanished: tuple[str, ...]) -> list[str]:
    lines = []
    if changed:
        lines.append(
            f"changed since they were planned, rows kept as they were: {listed(changed)} (--overwrite encodes anew)"
        )
    if vanished:
        lines.append(f"no longer in the input, rows kept: {listed(vanished)}")
    return lines


def derived_plan_lines(plan: DerivedPlan) -> list[str]:
    """What a completion or a projection would do."""
    return [
        f"plan for {plan.output}: {shards(plan.shards_now)} to make of {plan.rows:,} rows, {plan.shards_before:,} done",
        "nothing was written",
    ]


def completion_lines(report: CompletionReport) -> list[str]:
    """What a completion did, with the line that says how sharp it is."""
    before = f", {report.skipped} were done before" if report.skipped else ""
    lines = [f"{report.rows:,} rows in {report.folder} ({shards(report.shards, 'new')}{before})", report.line()]
    return lines + report.details() + _follow(report.renewed, report.vanished)


def fit_lines(result: FitResult) -> list[str]:
    """What was fitted and where it lies; the join and the completions were said on the way."""
    connector = result.connector
    loss = result.metrics.get("loss")
    ended = f", last loss {loss:.3f}" if isinstance(loss, float) else ""
    if "validation" in result.metrics:
        ended += f"; the weights are those of step {result.metrics['best_step']}, the best on the validation pair"
    fitted = f"fitted {' + '.join(connector.spaces)} into {connector.dim}-d in {duration(result.seconds)}{ended}"
    return [fitted, f"connector: {result.folder}"]


def plan_lines(plan: FitPlan) -> list[str]:
    """What a fit would do."""
    where = plan.output or "no folder yet"
    steps = f"{plan.epochs} epochs in {plan.steps:,} steps of {plan.batch_size:,} rows"
    course = steps if plan.steps else plan.untimed or "closed form"
    first, second = (space.name for space in plan.spaces)
    only = f"{plan.joined.left_only:,} only in {first}, {plan.joined.right_only:,} only in {second}"
    lines = [f"plan for {where}: {plan.method}, {course}", f"joined {plan.rows:,} rows by key ({only})"]
    if plan.processes > 1:
        lines.append(_processes_line(plan))
    if plan.resumes_at:
        lines.append(f"goes on after step {plan.resumes_at:,}")
    lines += [_space_line(space) for space in plan.spaces]
    if plan.steps:
        width = f"into {plan.dim}-d, " if plan.dim else ""
        lines.append(
            f"{width}{plan.parameters:,} parameters, about {size(plan.memory_bytes)} of memory for the training"
        )
    lines.append(f"disk about {size(plan.disk_bytes)}")
    parts = [("completion", plan.completion_seconds), ("fit", plan.fit_seconds)]
    times = [f"{name} about {duration(seconds)}" for name, seconds in parts if seconds]
    return [
        *lines,
        f"time: {', '.join(times) or ('not known' if plan.untimed else 'seconds')} ({plan.basis})",
        "nothing was written",
    ]


def _processes_line(plan: FitPlan) -> str:
    """How a planned fit is shared among processes."""
    if plan.training == 1:
        return f"{plan.processes} processes, of which the first works and the others wait"
    least, more = divmod(plan.batch_size, plan.processes)
    rows = f", {least:,}{f' or {least + 1:,}' if more else ''} rows of a batch each" if plan.batch_size else ""
    return f"{plan.processes} processes{rows}; sizes and times below are those of one process"


def _space_line(space: SpacePlan) -> str:
    """A space of a planned fit."""
    bank = f"bank of {space.bank_rows:,} rows in {space.bank_caches} cache{'s' * (space.bank_caches != 1)}"
    parts = [f"{space.rows:,} rows of {space.modality}, {space.dim}-d", bank if space.bank_rows else "no bank"]
    if space.completion == "reuse":
        parts.append("completion is there")
    elif space.completion:
        parts.append(f"{space.to_complete:,} rows to complete")
    if space.head:
        parts.append(f"head {space.head}")
    return f"{space.name}: {', '.join(parts)}"


def project_lines(report: ProjectReport) -> list[str]:
    """What a projection did."""
    lines = [
        f"{report.rows:,} rows of {report.space} projected into {report.output}"
        f" ({report.dim}-d, {duration(report.seconds)})"
    ]
    if report.kept:
        lines.append(f"{report.kept} shards were projected before and are still right")
    lines += _follow(report.renewed, report.vanished)
    if report.failed:
        lines.append(f"{report.failed:,} rows failed; each is a line of {report.output}/errors")
    return lines + list(report.notes)


def _follow(renewed: int, vanished: int) -> list[str]:
    """What a derived cache did to follow its input."""
    lines = [f"made again, since their input had changed: {shards(renewed)}"] if renewed else []
    return lines + ([f"taken back, since their input is gone: {shards(vanished)}"] if vanished else [])


def cache_lines(cache: Cache) -> list[str]:
    """What a cache holds and what made it."""
    m = cache.manifest
    failed = sum(marker.failed for marker in cache.shards)
    disk = sum(marker.bytes for marker in cache.shards)
    return [
        f"{cache.path}: {len(cache):,} rows of {m.modality}, {m.dim}-d {m.dtype}, {m.kind}",
        f"space       {m.space_name} ({m.space_id})",
        f"encoder     {m.encoder}",
        f"fingerprint {m.fingerprint}",
        f"shards      {len(cache.shards):,}, {size(disk)}, {failed:,} failed items",
    ]


def cache_table(caches: Iterable[Cache]) -> Table:
    """Several caches, a row each."""
    from rich.table import Table

    table = Table()
    for name in ("cache", "rows", "modality", "space", "dim", "kind", "encoder", "failed"):
        table.add_column(name, justify="right" if name in ("rows", "dim", "failed") else "left", overflow="fold")
    for cache in caches:
        m = cache.manifest
        failed = sum(marker.failed for marker in cache.shards)
        cells = (
            str(cache.path),
            f"{len(cache):,}",
            m.modality,
            m.space_name,
            str(m.dim),
            m.kind,
            m.encoder,
            f"{failed:,}",
        )
        table.add_row(*cells)
    return table


def cache_record(cache: Cache) -> dict[str, Any]:
    """The same as plain values."""
    record = asdict(cache.manifest)
    failed = sum(marker.failed for marker in cache.shards)
    return {**record, "path": str(cache.path), "rows": len(cache), "shards": len(cache.shards), "failed": failed}


def verify_lines(report: VerifyReport) -> list[str]:
    """Whether a cache is sound, and if not, where."""
    state = "sound" if report.ok else f"{len(report.problems)} problems"
    lines = [f"{report.path}: {state}; {report.shards:,} shards, {report.rows:,} rows, {report.failed:,} failed items"]
    lines += [f"  {problem}" for problem in report.problems]
    if report.pending:
        lines.append(
            f"{len(report.pending)} planned shards are not there yet: run the command that made the cache again"
        )
    if report.leftovers:
        lines.append(f"files that no marker names: {listed(report.leftovers)}")
    if not report.ok:
        lines.append(f"next: cmcr cache verify {report.path} --repair, then the command that made the cache again")
    return lines


def repair_lines(report: RepairReport) -> list[str]:
    """What a repair took back."""
    lines = [f"shard {shard} taken back: {why}" for shard, why in report.dropped.items()]
    lines += [f"removed {name}" for name in report.removed]
    lines += [f"remains: {problem}" for problem in report.remaining]
    return lines or ["nothing to repair"]


def connector_lines(connector: Connector) -> list[str]:
    """What a connector joins and what it was made from."""
    info = connector.info
    lines = [f"{info.method}: {' + '.join(connector.spaces)} into {connector.dim}-d"]
    for name, space in info.spaces.items():
        encoders = ", ".join(f"{modality} by {encoder}" for modality, encoder in space.encoders.items())
        head = connector.heads[name].spec
        lines.append(f"{name} ({space.id}): {encoders}; head {head.kind} {head.dim_in} -> {head.dim_out}")
    return lines
