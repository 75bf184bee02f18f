"""Submitting: what is refused before anything is queued, the script, and tasks as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.errors import CmcrError, DeviceError, MissingExtraError, RecipeError
from cmcr.cache.lease_files import read_claims
from cmcr.cache.verify import repair
from cmcr.cli import app
from cmcr.pipeline.cluster import devices
from cmcr.pipeline.cluster.foresee import command_words
from cmcr.pipeline.cluster.options import JobOptions, parse_extra
from cmcr.pipeline.cluster.record import Submitted, read, write
from cmcr.pipeline.cluster.retry import retry
from cmcr.pipeline.cluster.status import status
from cmcr.pipeline.cluster.submit import Submission, submit
from cmcr.pipeline.cluster.task import Task
from cmcr.pipeline.encode import encode
from cmcr.pipeline.stopping import signal_name
from typer.testing import CliRunner

ENCODERS = Path(__file__).parents[1] / "my_encoders.py"
ROWS = 16


def content(cache: Path) -> dict[str, bytes]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.relative_to(cache).parts[0] not in ("runs", "index")]
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in files}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A text file of eight shards."""
    file = tmp_path / "captions.txt"
    file.write_text("".join(f"caption {i}\n" for i in range(8 * ROWS)))
    return file


def command(source: Path, cache: Path, encoder: str = "PacedTable") -> list[str]:
    words = ["--modality", "text", "--encoder", f"{ENCODERS}:{encoder}", "--shard-size", str(ROWS), "--batch-size", "4"]
    return ["encode", *words, "--input", str(source), "--output", str(cache)]


@pytest.fixture
def paced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks take a while to a batch; where they write what they encode."""
    monkeypatch.setenv("CMCR_TEST_SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("CMCR_TEST_PACE", "0.05")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "seen"


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), prog_name="cmcr")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("4:00:00", 240), ("0:00:30", 1), ("10:30", 11), ("1-12", 2160), ("2-00:10", 2890), ("1-0:0:1", 1441)],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert JobOptions(time=text).minutes == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "0", "-5", "2h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="no length of time"):
        JobOptions(time=text)


@pytest.mark.parametrize(("minutes", "warning"), [(1, 20), (3, 60), (240, 90)])
def test_the_warning_before_a_short_limit_is_a_third_of_it(minutes: int, warning: int) -> None:
    assert JobOptions(time=str(minutes)).warning_seconds == warning


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no command is given"),
        (["search", "--text", "a dog"], "encode, complete, project or fit, not 'search'"),
        (["encoed"], "did you mean encode?"),
        (["encode", "--dry-run"], "belongs before the two dashes"),
        (["encode", "--overwrite"], "would take back what the others did"),
        (["encode", "--worker", "3", "--workers", "8"], "the same worker"),
    ],
)
def test_commands_that_an_array_cannot_run_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        command_words(words)
    assert said in str(error.value)


def test_commands_are_taken_as_words_or_as_one_text() -> None:
    expected = ["encode", "--input", "my file.txt", "--worker", "auto"]
    assert command_words("cmcr encode --input 'my file.txt' --worker auto") == expected
    assert command_words(expected) == expected


def test_a_fit_is_one_task() -> None:
    with pytest.raises(RecipeError, match="one process, and 4 tasks would not share it"):
        submit("fit --config connect.toml", tasks=4)


def test_missing_weights_are_said_before_anything_is_queued(source: Path, tmp_path: Path) -> None:
    words = ["--modality", "text", "--encoder", "ulip:PointBERT/nowhere.pt", "--input", str(source)]
    result = run("submit", "--cluster", "local", "--", "encode", *words, "--output", str(tmp_path / "cache"))
    assert result.exit_code == 1
    assert "nowhere.pt" in result.output.splitlines()[1]
    assert "Traceback" not in result.output
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shard-siez", "3"], "error: No such option: --shard-siez"),
        (["--input", "nowhere.txt"], "nowhere.txt"),
        (["--devices", "nonsense"], "'nonsense' is no device"),
        (["--devices=auto", "--device", "cuda:1"], "device and devices exclude each other"),
    ],
)
def test_what_is_wrong_with_the_command_is_said_in_its_own_words(
    words: list[str], said: str, source: Path, tmp_path: Path
) -> None:
    result = run("submit", "--cluster", "local", "--quiet", "--", *command(source, tmp_path / "cache"), *words)
    assert result.exit_code == 1
    assert said in result.output
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_that_is_killed_is_no_ctrl_c(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command(source, tmp_path / "cache", "DoomedTable")
    for number, name in ((signal.SIGKILL, "SIGKILL"), (signal.SIGTERM, "SIGTERM")):
        monkeypatch.setenv("CMCR_TEST_SIGNAL", str(int(number)))
        with pytest.raises(CmcrError, match=f"dry run of the command was ended by {name}") as error:
            submit(words, cluster="local")
        assert "memory ran out" in str(error.value)
    monkeypatch.setenv("CMCR_TEST_SIGNAL", str(int(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        submit(words, cluster="local")
    assert signal_name(999) == "signal 999"


def test_without_slurm_and_without_submitit_one_line_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CmcrError, match="no Slurm here"):
        submit(command(source, tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match="submitit"):
        submit(command(source, tmp_path / "cache"))


def test_a_dry_run_prints_plan_and_script_without_slurm_and_writes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paced: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--tasks", "3", "--dry-run", "--partition", "gpu", "--gpus", "1", "--time", "1:30:00", "--throttle", "2"]
    words += ["--extra", "constraint=a100", "--extra", "--exclusive", "--setup", "module load cuda", "--account", "lab"]
    result = run("submit", *words, "--", *command(source, tmp_path / "cache"), "--devices", "auto")
    assert result.exit_code == 0, result.output
    flags = [line.removeprefix("#SBATCH --") for line in result.output.splitlines() if line.startswith("#SBATCH")]
    wanted = {"array=0-2%2", "partition=gpu", "gpus-per-node=1", "time=90", "constraint=a100", "exclusive"}
    assert wanted | {"account=lab", "requeue", "signal=USR2@90", "job-name=cmcr-encode"} <= set(flags)
    assert "module load cuda" in result.output.splitlines()
    assert "plan: 3 tasks" in result.output
    assert "3 of 8 shards a task" in result.output
    assert not (tmp_path / "cache").exists()


def test_extra_options_have_names() -> None:
    assert parse_extra(["constraint=a100", "--exclusive"]) == {"constraint": "a100", "exclusive": ""}
    with pytest.raises(RecipeError, match="no name"):
        parse_extra(["=3"])


def submitted(source: Path, cache: Path, **options: Any) -> Submission:
    return submit(command(source, cache), cluster="local", **options)


def workers(cache: Path, count: int) -> list[int]:
    """Process ids of the workers that hold leases, once there are so many and a shard is done."""
    end = time.monotonic() + 60
    while True:
        found = sorted({claim.holder.pid for claim in read_claims(cache).values() if claim.holder is not None})
        if len(found) >= count and list(cache.glob("shards/*.json")):
            return found
        assert time.monotonic() < end, "the tasks do not begin"
        time.sleep(0.02)


def test_local_tasks_killed_are_seen_to_be_gone_and_retried_to_the_bytes_of_one_process(
    source: Path, tmp_path: Path, paced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    made = submitted(source, cache, tasks=2)
    for victim in workers(cache, 2):
        os.kill(victim, signal.SIGKILL)
    assert made.wait(30)
    now = status(cache)
    assert (now.state, now.exit_code(), now.running) == ("stopped", 1, 0)
    assert 0 < now.done < 8
    monkeypatch.setenv("CMCR_TEST_PACE", "0")
    result = run("retry", str(cache), "--wait")
    assert result.exit_code == 0, result.output
    assert f"of {8 - now.done} shards a task" in result.output
    assert "8 of 8 shards done" in result.output
    assert run("status", str(cache)).exit_code == 0
    assert "nothing to do" in run("retry", str(cache)).output
    encode(source, tmp_path / "one", modality="text", encoder=f"{ENCODERS}:PacedTable", shard_size=ROWS, batch_size=4)
    assert content(cache) == content(tmp_path / "one")


def test_a_task_asked_to_leave_by_sigusr2_finishes_its_shard_and_comes_back(
    source: Path, tmp_path: Path, paced: Path
) -> None:
    cache = tmp_path / "cache"
    made = submitted(source, cache, tasks=1)
    (worker,) = workers(cache, 1)
    now = status(cache)
    assert (now.state, now.exit_code(), now.workers) == ("working", 3, 1)
    with pytest.raises(CmcrError, match="1 tasks of this cache run"):
        retry(cache)
    os.kill(worker, signal.SIGUSR2)
    assert made.wait(60)
    assert status(cache).state == "finished"
    seen = [line.split()[-1] for line in paced.read_text().splitlines()][8:]  # the dry run times one batch twice
    assert len(seen) == len(set(seen)) == 8 * ROWS, "a shard in flight was not finished, or was begun again"
    assert len(list((cache / "runs").glob("*.jsonl"))) == 3, "the task ran twice"


def test_ctrl_c_ends_the_waiting_and_neither_the_tasks_nor_a_pipe_that_is_read(
    source: Path, tmp_path: Path, paced: Path
) -> None:
    cache = tmp_path / "cache"
    words = ["submit", "--cluster", "local", "--wait", "--", *command(source, cache)]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "cmcr", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    (worker,) = workers(cache, 1)
    os.kill(worker, signal.SIGSTOP)  # so that the task cannot end by itself
    os.killpg(waiting.pid, signal.SIGINT)
    said = waiting.communicate(timeout=20)[0]
    os.kill(worker, signal.SIGCONT)
    assert waiting.returncode == 130, said
    assert "the tasks go on; end them with: kill " in said
    wait_for = time.monotonic() + 60
    while status(cache).state != "finished":
        assert time.monotonic() < wait_for, status(cache)
        time.sleep(0.1)


def test_ctrl_c_while_tasks_are_started_loses_neither_itself_nor_their_record(
    source: Path, tmp_path: Path, paced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit")
    cache, real = tmp_path / "cache", submitit.LocalExecutor.submit

    def interrupted(self: Any, task: Any) -> Any:
        job = real(self, task)
        os.kill(os.getpid(), signal.SIGINT)
        return job

    monkeypatch.setattr(submitit.LocalExecutor, "submit", interrupted)
    made = submit(command(source, cache), cluster="local")
    assert made.interrupted
    with pytest.raises(KeyboardInterrupt):
        made.wait()
    assert [one.jobs for one in read(cache)] == [made.jobs]
    assert replace(made, interrupted=False).wait(60)
    assert status(cache).state == "finished"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_task_that_gets_nowhere_within_its_time_is_not_queued_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task(["encode"], str(tmp_path), minutes=1)
    task._started, task._before = time.monotonic() - 50, task._progress()
    assert task.checkpoint() is None
    assert "would not help" in capsys.readouterr().err
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "00000.json").write_text("{}")
    assert task.checkpoint().function.words == ("encode",)


def test_a_shard_that_is_written_again_is_progress_and_a_retry_in_vain_is_none(tmp_path: Path, source: Path) -> None:
    source.write_text("".join(f"!nan {i}\n" if i % ROWS == 3 else f"caption {i}\n" for i in range(2 * ROWS)))
    cache = tmp_path / "cache"
    settings: dict[str, Any] = {"modality": "text", "encoder": f"{ENCODERS}:PlainTable", "shard_size": ROWS}
    encode(source, cache, **settings)
    (cache / "shards" / "00000.g0.h5").unlink()
    assert list(repair(cache).dropped) == [0]
    task = Task(["encode"], str(cache), minutes=1)
    task._started, task._before = time.monotonic() - 50, task._progress()
    assert encode(source, cache, **settings).shards_now == 1
    assert task.checkpoint() is not None, "a shard that is written again counts for nothing"
    task._before = task._progress()
    assert encode(source, cache, retry_failed=True, **settings).shards_now == 2
    assert task.checkpoint() is None, "a retry in vain counts as progress, for ever"


def test_a_retry_without_a_recorded_submission_says_what_to_do(source: Path, tmp_path: Path, paced: Path) -> None:
    encode(source, tmp_path / "one", modality="text", encoder=f"{ENCODERS}:PlainTable")
    with pytest.raises(CmcrError, match="No submission is recorded"):
        retry(tmp_path / "one")
    result = run("status", str(tmp_path / "nothing"))
    assert (result.exit_code, "There is no cache here" in result.output) == (1, True)


def recorded(source: Path, cache: Path, **options: Any) -> Path:
    """A cache of two lost items, as an array left it that was submitted with these options."""
    source.write_text("".join(f"!nan {i}\n" if i % ROWS == 3 else f"caption {i}\n" for i in range(2 * ROWS)))
    words = command(source, cache, "PlainTable")
    encode(source, cache, modality="text", encoder=f"{ENCODERS}:PlainTable", shard_size=ROWS)
    write(cache, Submitted(tuple(words), str(cache.parent), JobOptions(**options), ("1_0",), "logs"))
    return cache


def test_a_retry_takes_other_options_and_refuses_unknown_ones(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cache = recorded(source, tmp_path / "cache", tasks=2, partition="cpu", memory="4G")
    again = retry(cache, dry_run=True, partition="gpu")
    assert (again.options.tasks, again.options.partition, again.options.memory) == (2, "gpu", "4G")
    for call in (lambda **options: retry(cache, **options), lambda **options: submit(again.words, **options)):
        with pytest.raises(RecipeError, match="no option 'partion'") as error:
            call(dry_run=True, partion="gpu")
        assert error.value.todo == "did you mean partition?"


@pytest.mark.parametrize(
    ("inherited", "gpus", "seen"),
    [(None, 2, ["0,1", "2,3"]), ("5,GPU-1a2b", 1, ["5", "GPU-1a2b"]), ("5,3", 0, ["", ""])],
)
def test_local_tasks_share_out_the_gpus_that_this_process_may_see(
    inherited: str | None, gpus: int, seen: list[str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_gpus", lambda: 4 if inherited is None else 2)
    monkeypatch.setenv("CMCR_TEST_SEEN", str(tmp_path / "seen"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if inherited is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    made = submit(command(source, tmp_path / "cache", "VisibleTable"), cluster="local", tasks=2, gpus=gpus)
    assert made.wait(60)
    assert status(tmp_path / "cache").state == "finished", made.logs
    assert sorted((tmp_path / "seen").read_text().split("\n")[:-1]) == seen


@pytest.mark.parametrize(("here", "todo"), [(2, "--tasks 2"), (0, "leave --gpus out")])
def test_local_tasks_for_which_there_are_no_gpus_are_refused(
    here: int, todo: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_gpus", lambda: here)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for dry_run in (True, False):
        with pytest.raises(DeviceError, match=f"4 x 1 GPUs are asked for, and this machine has {here}") as error:
            submit(command(source, tmp_path / "cache", "PlainTable"), cluster="local", tasks=4, gpus=1, dry_run=dry_run)
        assert error.value.todo is not None
        assert error.value.todo.startswith(todo)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--throttle", "2", "--memory", "4G"], "have no use for --memory, --throttle"),
        (["--cpus", "2"], "have no use for --cpus"),
        (["--partition", "gpu"], "have no use for --partition"),
        (["--account", "lab"], "have no use for --account"),
        (["--extra", "exclusive"], "have no use for --extra"),
    ],
)
def test_what_only_slurm_knows_is_refused_for_local_tasks(
    words: list[str], said: str, source: Path, tmp_path: Path
) -> None:
    result = run("submit", "--cluster", "local", *words, "--", *command(source, tmp_path / "cache"))
    assert (result.exit_code, said in result.output) == (1, True), result.output
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("words", [["--worker", "auto"], ["--worker=auto"]])
def test_local_tasks_are_not_split_by_number(words: list[str], source: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="have no number for --worker auto"):
        submit([*command(source, tmp_path / "cache"), *words], cluster="local", tasks=2, dry_run=True)
    assert submit(["encode", *command(source, tmp_path / "cache", "PlainTable")[1:], *words], dry_run=True).script


def test_a_retry_on_this_machine_leaves_out_what_only_slurm_knows_and_says_so(source: Path, tmp_path: Path) -> None:
    cache = recorded(source, tmp_path / "cache", tasks=2, partition="cpu", throttle=1, time="30")
    again = retry(cache, dry_run=True, cluster="local")
    assert again.options.record() == JobOptions(tasks=2, cluster="local", time="30").record()
    assert again.notes == ("left out, as processes of this machine have no use for it: partition, throttle",)
    with pytest.raises(RecipeError, match="have no use for --partition"):
        retry(cache, dry_run=True, cluster="local", partition="gpu")


def test_the_end_of_a_local_task_with_a_setup_is_that_of_its_work(
    source: Path, tmp_path: Path, paced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCR_TEST_PACE", "0.3")
    seen = tmp_path / "seen by the task"
    made = submitted(source, tmp_path / "cache", tasks=1, setup=["true", f"export CMCR_TEST_SEEN='{seen}'"])
    (worker,) = workers(tmp_path / "cache", 1)
    assert seen.exists(), "the lines of the setup were not run"
    os.kill(int(made.jobs[0]), signal.SIGTERM)  # as cmcr says that one ends it
    assert made.wait(30)
    assert status(tmp_path / "cache").state == "stopped", "the task went on without its shell"
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
