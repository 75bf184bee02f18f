"""Other people's code in a Python file, named ``path/to/my.py:MyClass``: encoders and methods are loaded alike."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CmcrError

_FILE_NAME = re.compile(r"(?P<path>.+\.py):(?P<attribute>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class FromFile:
    """What ``my.py:MyClass`` names.

    Parameters
    ----------
    name : str
        As it is recorded: the file without its folder.
    value : object
        The class, function or ready object.
    path : Path
        The file.
    source_hash : str
        BLAKE2b of the file, 16 bytes in hex.
    """

    name: str
    value: Any
    path: Path
    source_hash: str


def is_file_name(name: str) -> bool:
    """Whether a name is of the form ``path/to/my.py:MyClass``."""
    return _FILE_NAME.fullmatch(name) is not None


def recorded_name(name: str) -> str:
    """The name without the folder of the file, as it may stand in a cache or connector; other names as they are."""
    match = _FILE_NAME.fullmatch(name)
    return f"{Path(match['path']).name}:{match['attribute']}" if match else name


def load_from_file(name: str, kind: type[CmcrError], *, flag: str) -> FromFile:
    """Import the file that a name begins with, and take from it what the name ends with.

    Parameters
    ----------
    name : str
        Path of a Python file, a colon, and a name in it.
    kind : type of CmcrError
        What is raised.
    flag : str
        The flag that takes such a name, for the message.

    Raises
    ------
    CmcrError
        The file is missing, it raises when it is imported, or it has nothing of that name.
    """
    match = _FILE_NAME.fullmatch(name)
    if match is None:
        raise kind(f"{name!r} is not of the form my.py:MyClass")
    path, attribute = Path(match["path"]), match["attribute"]
    if not path.is_file():
        raise kind(
            f"there is no file {path}",
            where=name,
            todo=f"folders of such files are not recorded: give its path with {flag} PATH/{path.name}:{attribute}",
        )
    source = path.read_bytes()
    module = _import_file(path, source, name, kind)
    if not hasattr(module, attribute):
        named = [
            n for n, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        raise kind(f"{path} has no {attribute}", where=name, todo=f"it has: {', '.join(named) or 'no class'}")
    digest = hashlib.blake2b(source, digest_size=16).hexdigest()
    return FromFile(f"{path.name}:{attribute}", getattr(module, attribute), path, digest)


@contextmanager
def named_errors(kind: type[CmcrError], doing: str, where: str) -> Iterator[None]:
    """Turn what other people's code raises into a ``kind`` that says what raised it and where; our own errors pass.

    Parameters
    ----------
    kind : type of CmcrError
    doing : str
        What is being done, the class named.
    where : str
        The file (its last line that was running is added) or another place.
    """
    try:
        yield
    except CmcrError:
        raise
    except (Exception, SystemExit) as error:  # anything may be raised there; it is named and chained, not swallowed
        raise kind(f"{doing} raised {type(error).__name__}: {error}", where=_place(error, where)) from error


def _place(error: BaseException, where: str) -> str:
    """The file with the last of its lines in the traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _same(frame.filename, where)]
    return f"{where}, line {lines[-1]}" if lines else where


def _same(one: str, other: str) -> bool:
    return one.endswith(".py") and Path(one).resolve() == Path(other).resolve()


def _import_file(path: Path, source: bytes, name: str, kind: type[CmcrError]) -> Any:
    """Import a file under a name of its own, so that two files called my.py do not meet."""
    mark = hashlib.blake2b(str(path.resolve()).encode() + b"\0" + source, digest_size=8).hexdigest()
    module_name = f"cmcr_file_{path.stem}_{mark}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise kind(f"{path} cannot be imported", where=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and typing look the module up while it runs
    try:
        with named_errors(kind, str(path), str(path)):
            # compiled here: a loader may take the bytecode of an older source of the same size and second
            exec(compile(source, str(path.resolve()), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
