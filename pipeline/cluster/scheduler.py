"""The engine, submitit, for Slurm and for processes of this machine: what it is given, and what it says."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...cache import fsio
from ...cache.errors import CmcrError, DeviceError, MissingExtraError
from ...cache.lease_files import machine
from .devices import visible_gpus
from .options import JobOptions
from .record import Submitted
from .task import Task

TURNS = 1000  # times that a task may reach its time limit; one without progress ends it before
FOR_EVER = 60 * 24 * 365  # minutes


def parameters(options: JobOptions, name: str) -> dict[str, Any]:
    """What submitit calls the options; what is not given is left to the cluster."""
    given: dict[str, Any] = {
        "job_name": name,
        "time": options.minutes,
        "signal_delay_s": options.warning_seconds,
        "array_parallelism": options.throttle or options.tasks,
        "gpus_per_node": options.gpus,
        "cpus_per_task": options.cpus,
        "mem": options.memory,
        "partition": options.partition,
        "account": options.account,
        "setup": list(options.setup),
    }
    # --requeue: a cluster may have it off as it comes. A value of True is a flag.
    more = {"requeue": True, **{name: value or True for name, value in options.extra.items()}}
    return {**{name: value for name, value in given.items() if value}, "wckey": "cmcr", "additional_parameters": more}


def sbatch_script(options: JobOptions, folder: Path, name: str) -> str:
    """The script that sbatch gets; needs no Slurm here."""
    submitit = _submitit()
    executor = object.__new__(submitit.SlurmExecutor)  # its constructor asks for srun
    executor.folder, executor.python = folder, shlex.quote(sys.executable)
    count = {"map_count": options.tasks} if options.tasks > 1 else {}
    given = {**parameters(options, name), **count}
    make = submitit.slurm.slurm._make_sbatch_string
    return str(make(command=executor._submitit_command_str, folder=folder, **given))


def start(task: Task, options: JobOptions, folder: Path) -> Submitted:
    """Queue the tasks, or start them as processes.

    Raises
    ------
    CmcrError
        Slurm refuses, or is not there.
    MissingExtraError
        submitit is not installed.
    """
    launch = _start_local if options.cluster == "local" else _start_slurm
    jobs, starts = launch(task, options, folder)
    where = machine() if options.cluster == "local" else ""
    return Submitted(task.words, str(Path.cwd()), options, tuple(jobs), str(folder), where, tuple(starts))


def check_installed(options: JobOptions) -> None:
    """Whether tasks can be started from here at all; asked before anything else is done.

    Raises
    ------
    CmcrError
    MissingExtraError
    """
    _submitit()
    if options.cluster == "slurm" and (shutil.which("sbatch") is None or shutil.which("srun") is None):
        raise CmcrError(
            "there is no Slurm here: sbatch and srun are not on the PATH",
            todo="run this on a login node of the cluster, or with --cluster local for processes of this machine",
        )


def job_name(words: Sequence[str]) -> str:
    """What the queue shows."""
    return f"cmcr-{words[0]}"


def _start_slurm(task: Task, options: JobOptions, folder: Path) -> tuple[list[str], list[int]]:
    submitit = _submitit()
    executor = submitit.SlurmExecutor(folder, max_num_timeout=TURNS)
    executor.update_parameters(**parameters(options, job_name(task.words)))
    jobs = []
    try:
        # It prints what sbatch says, and raises it too.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            jobs = [executor.submit(task) for _ in range(options.tasks)]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise CmcrError(
            f"Slurm refuses the job: {_refusal(str(error))}", where="sbatch", todo=_advice(options)
        ) from error
    return [str(job.job_id) for job in jobs], []


def _refusal(said: str) -> str:
    """The telling line of what sbatch printed."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Batch job submission failed", "Try "))]
    return (telling or lines or ["it does not say why"])[-1].rstrip(".")


def _advice(options: JobOptions) -> str:
    given: dict[str, Any] = {"--partition": options.partition, "--account": options.account, "--time": options.time}
    given |= {"--gpus": options.gpus, "--cpus": options.cpus, "--memory": options.memory}
    asked = " ".join(f"{name} {value}" for name, value in given.items() if value)
    return f"change what was asked for ({asked}); sinfo lists partitions, --dry-run prints the script"


def gpus_of_tasks(options: JobOptions) -> list[str]:
    """What CUDA_VISIBLE_DEVICES says in each task on this machine: no GPU stands twice.

    Raises
    ------
    DeviceError
        There are not so many.
    """
    each, wanted = options.gpus, options.tasks * options.gpus
    here = visible_gpus() if wanted else []
    if len(here) < wanted:
        fewer = len(here) // each
        raise DeviceError(
            f"{options.tasks} x {each} GPUs are asked for, and this machine has {len(here)} that torch can use",
            where="--cluster local",
            todo=f"--tasks {fewer}" if fewer else "leave --gpus out: the tasks then work on the CPU",
        )
    return [",".join(here[number * each : (number + 1) * each]) for number in range(options.tasks)]


def _start_local(task: Task, options: JobOptions, folder: Path) -> tuple[list[str], list[int]]:
    submitit = _submitit()
    executor = submitit.LocalExecutor(folder, max_num_timeout=TURNS)
    executor.update_parameters(timeout_min=task.minutes or FOR_EVER, signal_delay_s=options.warning_seconds)
    visible = gpus_of_tasks(options)
    jobs = []
    with _detached():
        for gpus in visible:
            executor.python = shlex.join(_local_python(options, gpus))
            jobs.append(executor.submit(task))
    STARTED.update((str(job.job_id), job) for job in jobs)
    return [str(job.job_id) for job in jobs], [fsio.process_start(int(job.job_id)) for job in jobs]


def _local_python(options: JobOptions, gpus: str) -> list[str]:
    """What starts Python in a local task, in the place of what submitit would do itself.

    submitit counts GPUs from 0, whatever this process may see; and it wraps its own process in the shell of ``setup``,
    which then is the one that a signal to the task ends. Here the shell becomes the task.
    """
    python = ["/usr/bin/env", f"CUDA_VISIBLE_DEVICES={gpus}", sys.executable]
    if not options.setup:
        return python
    shell = shutil.which("bash") or "/bin/sh"  # bash runs the script of a job array
    return [shell, "-c", " && ".join([*options.setup, 'exec "$@"']), shell, *python]


STARTED: dict[str, Any] = {}  # local tasks of this process: they are its children, and it collects them
atexit.register(STARTED.clear)  # submitit's jobs cannot be deleted later than this


INTERRUPT = {signal.SIGINT}


@contextlib.contextmanager
def held_interrupts() -> Iterator[list[int]]:
    """Ctrl-C does not break what is done in here, as tasks that run and are not on record would be; it is noted."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # another one gets no signals
        yield heard
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _detached() -> Iterator[None]:
    """Processes started in here do not hear Ctrl-C, as tasks elsewhere would not, and hold no pipe of ours open."""
    with contextlib.ExitStack() as undo:
        # What is blocked stays so in what is started here; it is not lost, as what is ignored would be.
        undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPT))
        nothing = os.open(os.devnull, os.O_RDWR)
        undo.callback(os.close, nothing)
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            kept = os.dup(number)
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, number)
            os.dup2(nothing, number)
        yield


def collect() -> None:
    """Collect local tasks that this process started and that have ended, so that they no longer count as living."""
    for job in STARTED.values():
        job.done()


def _submitit() -> Any:
    try:
        import submitit
        import submitit.slurm.slurm
    except ImportError as error:
        raise MissingExtraError(
            "submitting needs the package submitit, which is not installed", todo="pip install 'cmcr[slurm]'"
        ) from error
    return submitit
