"""What the command line says of submissions and of progress: values in, lines out."""

from __future__ import annotations

from collections.abc import Mapping

from ..terminal import duration, shards
from .queue import Queue
from .retry import end_command
from .status import Status
from .submit import Submission


def submission_lines(made: Submission) -> list[str]:
    """What was submitted, or would be."""
    lines = [*_plan_lines(made), *made.notes]
    if made.shards == 0:
        return [f"nothing to do: {made.output} is complete for these inputs"]
    tasks = made.options.tasks
    if made.jobs:
        where = (
            "processes of this machine" if made.options.cluster == "local" else f"job {made.jobs[0].partition('_')[0]}"
        )
        lines.append(f"submitted: {tasks} task{'' if tasks == 1 else 's'}, {where}; logs in {made.logs}")
        if made.words[0] != "fit":
            lines.append(f"how far it is: cmcr status {made.output}")
        return lines
    if made.script:
        lines += ["", made.script.rstrip(), ""]
    return [*lines, "nothing was submitted"]


def _plan_lines(made: Submission) -> list[str]:
    """The plan as the command's dry run says it, in two lines."""
    tasks = made.options.tasks
    lines = [f"command: {made.command}"]
    if made.words[0] == "fit":
        return [*lines, f"plan: 1 task writes {made.output}"]
    each = f"{-(-made.shards // tasks)} of {shards(made.shards)} a task" if tasks > 1 else shards(made.shards)
    before = made.plan.get("shards_before", 0)
    done = f", {before} done before" if before else ""
    lines.append(f"plan: {tasks} task{'' if tasks == 1 else 's'} for {made.output}, {each}{done}")
    rows, seconds = made.plan.get("rows"), made.plan.get("seconds")
    if rows:
        time = f", about {duration(seconds)} of work on one CPU such as this" if seconds else ""
        lines.append(f"rows {rows:,}{time}")
    return lines


def status_lines(now: Status) -> list[str]:
    """How far a cache is."""
    if now.shards == 0:
        lines = [f"{now.path}: submitted, no plan yet" if now.command else f"{now.path}: nothing is planned"]
    else:
        lines = [f"{now.path}: {now.done + now.failed:,} of {shards(now.shards)} done, {now.rows:,} rows"]
        lines.append(
            f"shards: done {now.done:,}, running {now.running:,}, failed {now.failed:,}, unclaimed {now.unclaimed:,}"
        )
    if now.rate:
        eta = f", about {duration(now.eta)} to go" if now.eta is not None else ""
        lines.append(f"rate: {now.rate:,.0f} items/s by {now.workers} worker{'' if now.workers == 1 else 's'}{eta}")
    if now.queue is not None and now.queue.tasks:
        lines.append(f"tasks: {_tasks(now.queue)}")
    if now.errors:
        lines.append(f"lost: {now.lost:,} items ({_kinds(now.errors)}); each is a line of {now.path}/errors")
    for what, count in now.task_errors.items():
        lines.append(f"{count} task{'' if count == 1 else 's'} ended with: {what}")
    if now.task_errors:
        lines.append(f"logs: {now.logs}")
    return [*lines, _verdict(now)]


def _verdict(now: Status) -> str:
    if now.state == "working":
        return "work goes on"
    if now.state == "finished":
        again = f"; try them again: cmcr retry {now.path}" if now.lost and "encode" in now.command else ""
        return f"finished{', with lost items' if now.lost else ''}{again}"
    again = f"cmcr retry {now.path}" if now.command else "run its command again"
    return f"stopped, nobody is at work: {again}"


def _tasks(queue: Queue) -> str:
    waiting = f", {queue.waiting} waiting" + (f" ({queue.reason})" if queue.reason else "") if queue.waiting else ""
    return f"{queue.running} running{waiting}"


def _kinds(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in errors.items())


def waiting_line(made: Submission) -> str:
    """Said when Ctrl-C ends the waiting."""
    return f"the tasks go on; end them with: {end_command(made.options.cluster, made.jobs)}"
