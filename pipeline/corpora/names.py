"""Which extension stands for which kind of file."""

from __future__ import annotations

from ..encoders.base import Modality

IMAGE = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"}
)
AUDIO = frozenset(
    {"wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "au", "snd", "w64", "rf64", "caf"}
)
# meshes are listed so that they become a ledger line instead of being passed over
POINTS = frozenset({"npy", "npz", "ply", "obj", "off"})
LINES = frozenset({"txt", "text"})
TABLES = frozenset({"jsonl", "ndjson", "csv", "tsv", "parquet"})
ARCHIVES = frozenset({"tar"})
CAPTION = frozenset({"txt", "text", "caption", "cap"})
RECORD = frozenset({"json"})
MEDIA: dict[Modality, frozenset[str]] = {"image": IMAGE, "audio": AUDIO, "pointcloud": POINTS}
COMPRESSED = frozenset({"gz", "tgz", "bz2", "xz", "zst", "zip", "7z", "rar"})


def extension(name: str) -> str:
    """Lower-case extension without its dot, of a POSIX path; empty if there is none."""
    base = name.rpartition("/")[2]
    head, dot, tail = base.rpartition(".")
    return tail.lower() if dot and head else ""


def looked_for(modality: Modality) -> str:
    """What an input of a modality may be, for error messages."""
    tables = "tables (" + " ".join(f".{e}" for e in sorted(TABLES)) + ")"
    if modality == "text":
        return f"text files (.txt, one caption a line), {tables}, tars, or folders of these"
    media = " ".join(f".{e}" for e in sorted(MEDIA[modality]))
    return f"{modality} files ({media}), folders of them, {tables} with a path column, or tars"
