"""A private Slurm cluster on this machine: own sockets, ports and folders; nothing of it outlives the tests."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")
CONFIG = """
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={socket}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=600
JobRequeue=1
SchedulerParameters=sched_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 \
RealMemory=16000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


class PrivateSlurm:
    """munged, slurmctld and slurmd in a folder of their own.

    ``cpus`` may be more than the machine has: as many tasks run side by side.
    """

    def __init__(self, cpus: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
        self.folder.chmod(0o755)  # munged refuses a socket where others cannot reach it
        self.config = self.folder / "slurm.conf"
        self.socket = self.folder / "munge.socket"
        self.cpus = cpus
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {"SLURM_CONF": str(self.config)}

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        fields = {"host": host, "user": getpass.getuser(), "socket": self.socket, "folder": self.folder}
        ports = {"controller_port": free_port(), "node_port": free_port()}
        self.config.write_text(CONFIG.format(**fields, **ports, cpus=self.cpus))
        names = {"socket": self.socket, "key-file": key}
        names |= {f"{name}-file": self.folder / f"munged.{name}" for name in ("pid", "log", "seed")}
        self._run(
            "munged", "munged", "--foreground", "--force", *(f"--{name}={value}" for name, value in names.items())
        )
        self._wait(self.socket.exists, "munged makes no socket")
        self.start_controller()
        self._run("slurmd", "slurmd", "-D", "-f", str(self.config), "-N", host)
        self._wait(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), "the node does not come up")

    def start_controller(self) -> None:
        self._run("slurmctld", "slurmctld", "-D", "-f", str(self.config))
        self._wait(lambda: "UP" in self.ask("scontrol", "ping"), "the controller does not answer")

    def restart_controller(self, pause: float = 2.0) -> None:
        """End the controller, leave the cluster without one for a while, and start it again from its saved state."""
        self._end("slurmctld")
        time.sleep(pause)
        self.start_controller()

    def ask(self, *words: str) -> str:
        """What a Slurm command prints."""
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **self.environment}, timeout=60)
        return done.stdout + done.stderr

    def state(self, job: str) -> str:
        """State of one job or array task as the controller knows it."""
        fields = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return next((field.partition("=")[2] for field in fields if field.startswith("JobState=")), "UNKNOWN")

    def close(self) -> None:
        self.ask("scancel", "--user", getpass.getuser())
        for name in ("slurmd", "slurmctld", "munged"):
            self._end(name)
        self._end_steps()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, name: str) -> None:
        daemon = self.daemons.pop(name, None)
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _end_steps(self) -> None:
        """End what slurmd left: processes that carry this cluster's configuration in their environment."""
        mark = f"SLURM_CONF={self.config}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)

    def _run(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            environment = {**os.environ, **self.environment}
            self.daemons[name] = subprocess.Popen(words, stdout=output, stderr=output, env=environment)

    def _wait(self, is_ready, problem: str, seconds: float = 40.0) -> None:  # type: ignore[no-untyped-def]
        end = time.monotonic() + seconds
        while not is_ready():
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                raise RuntimeError(f"{problem}; ended: {dead}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        files = sorted([*self.folder.glob("*.out"), *self.folder.glob("*.log")])
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)


@pytest.fixture(scope="module")
def slurm() -> Iterator[PrivateSlurm]:
    """A private Slurm of 12 places; skips where Slurm is not installed."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)} missing); on Debian: apt-get install slurm-wlm munge")
    cluster = PrivateSlurm(cpus=12)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
