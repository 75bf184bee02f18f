"""One page about this machine: what is installed, what works without network now, and what to type next."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .encoders.listing import Listing, list_encoders

PYTHONS = ((3, 10), (3, 12))
LOW_DISK = 5_000_000_000


@dataclass(frozen=True)
class Finding:
    """One line of the page: what was looked at, what is there, whether that is well, and what would mend it."""

    what: str
    found: str
    ok: bool
    todo: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """The whole page."""

    findings: tuple[Finding, ...]
    encoders: tuple[tuple[str, bool, str], ...]
    """Name, whether it works without network now, and what is missing or where it comes from."""
    next: tuple[str, ...]
    """Commands to type next, in order."""

    @property
    def ok(self) -> bool:
        """Whether nothing needs mending."""
        return all(finding.ok for finding in self.findings)


def diagnose() -> Diagnosis:
    """Look at this machine; asks no network and loads no model."""
    listing = list_encoders()
    findings = (_python(), *_torch(), _faiss(), _h5py(), _sound(), _hub_mode(), _disk(), *_extras(listing))
    encoders = tuple(
        (line.name, line.ready, "" if line.ready else "; ".join(line.missing) or "its package is not installed")
        for line in listing.encoders
    )
    return Diagnosis(findings, encoders, _next(findings, listing))


def _python() -> Finding:
    here = sys.version_info[:2]
    fits = PYTHONS[0] <= here <= PYTHONS[1]
    return Finding(
        "Python",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        fits,
        None if fits else "cmcr is made for Python 3.10 to 3.12",
    )


def _torch() -> list[Finding]:
    found = _version("torch")
    if found is None:
        return [Finding("torch", "not installed", False, "pip install cmcr")]
    import torch

    cores = os.cpu_count() or 1
    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        device = f"cuda: {', '.join(names)}"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        device = "cpu"
    return [
        Finding("torch", found, True),
        Finding("device", f"{device} (what --device auto takes)", True),
        Finding(
            "threads",
            f"{threads} of {cores} cores",
            threads <= cores,
            None if threads <= cores else f"export OMP_NUM_THREADS={cores}",
        ),
    ]


def _faiss() -> Finding:
    packages = [name for name in ("faiss-cpu", "faiss-gpu") if _version(name)]
    if len(packages) > 1:
        return Finding("faiss", " and ".join(packages), False, "both provide the module faiss: pip uninstall one")
    if packages:
        return Finding("faiss", f"{packages[0]} {_version(packages[0])}", True)
    return Finding("faiss", "not installed: exact search and completion only", True, "pip install 'cmcr[cpu]'")


def _h5py() -> Finding:
    found = _version("h5py")
    if found is None:
        return Finding("h5py", "not installed", False, "pip install cmcr")
    import h5py

    return Finding("h5py", f"{found} with HDF5 {h5py.version.hdf5_version}", True)


def _sound() -> Finding:
    found = _version("soundfile")
    if found is None:
        return Finding("soundfile", "not installed", False, "pip install cmcr")
    try:
        import soundfile
    except OSError as error:  # the wheel of a rare platform comes without libsndfile
        return Finding("soundfile", f"{found}, but its library does not load: {error}", False, "install libsndfile")
    formats = soundfile.available_formats()
    lacks = [
        name for name, code in (("wav", "WAV"), ("flac", "FLAC"), ("ogg", "OGG"), ("mp3", "MP3")) if code not in formats
    ]
    reads = ", ".join(name for name in ("wav", "flac", "ogg", "mp3") if name not in lacks)
    todo = f"no {', '.join(lacks)}: pip install -U soundfile" if lacks else None
    return Finding("soundfile", f"{found} reads {reads}", not lacks, todo)


def _hub_mode() -> Finding:
    from huggingface_hub import constants

    from .encoders.hub import endpoint, offline_by_choice

    mode = "off by choice (HF_HUB_OFFLINE)" if offline_by_choice() else "asked only for what is missing"
    return Finding("model hub", f"{endpoint()}, {mode}; cache {constants.HF_HUB_CACHE}", True)


def _disk() -> Finding:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    low = free < LOW_DISK
    todo = "CLIP, CLAP and ULIP-2 want about 3 GB: point HF_HOME at a larger disk" if low else None
    return Finding("disk for weights", f"{free / 1e9:.1f} GB free at {existing}", not low, todo)


def _extras(listing: Listing) -> list[Finding]:
    """Families and packages that an extra would add; their absence is no fault."""
    missing = [
        Finding(f"family {line.name}", f"not installed: {line.what}", True, line.install)
        for line in listing.families
        if not line.installed
    ]
    if find_spec("pyarrow") is None:
        missing.append(Finding("parquet", "not installed: no parquet tables", True, "pip install 'cmcr[parquet]'"))
    return missing


def _next(findings: tuple[Finding, ...], listing: Listing) -> tuple[str, ...]:
    """What to type next: what mends, then weights that are missing, then the first run."""
    mend = [finding.todo for finding in findings if not finding.ok and finding.todo]
    absent = [line.name for line in listing.encoders if line.missing and line.installed and line.of_the_paper]
    pull = [f"cmcr encoders pull {' '.join(absent)}"] if absent else []
    ready = [line.name for line in listing.encoders if line.ready and not line.name.startswith("sandbox:")]
    checks = [f"cmcr encoders check {ready[0]}"] if ready else []
    return (*mend, *pull, *checks, "cmcr demo --output demo-output")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
