"""The shape of the house: packages, direction of imports, light start."""

from __future__ import annotations

import ast
import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cache", "trainer", "pipeline")
FLOORS = ("cache", "trainer", "pipeline", "cli")


def sources() -> list[Path]:
    files = [ROOT / "__init__.py", ROOT / "__main__.py", ROOT / "cli.py"]
    for room in ROOMS:
        files += sorted((ROOT / room).rglob("*.py"))
    return [f for f in files if f.exists()]


def target_of(node: ast.ImportFrom, file: Path) -> str | None:
    """First path component, below the package root, that an import statement reaches."""
    names = (node.module or "").split(".") if node.module else []
    if node.level == 0:
        return names[1] if names[:1] == ["cmcr"] and len(names) > 1 else None
    here = list(file.relative_to(ROOT).parts[:-1])
    base = here[: len(here) - (node.level - 1)]
    path = [*base, *names]
    return path[0] if path else node.names[0].name


def test_packages_in_setup_cfg_are_the_folders_on_disk() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = set(config["options"]["packages"].split())
    found = {"cmcr"}
    for room in ROOMS:
        for init in (ROOT / room).rglob("__init__.py"):
            found.add(".".join(["cmcr", *init.parent.relative_to(ROOT).parts]))
    assert declared == found
    loose = [f for f in sources() if f.parent != ROOT and not (f.parent / "__init__.py").exists()]
    assert not loose, f"modules in folders without __init__.py are never installed: {loose}"


def test_imports_run_from_cli_to_pipeline_to_trainer_to_cache() -> None:
    uphill = []
    for file in sources():
        parts = file.relative_to(ROOT).parts
        at = file.stem if len(parts) == 1 else parts[0]
        if at not in FLOORS:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            to = target_of(node, file)
            if to in FLOORS and FLOORS.index(to) > FLOORS.index(at):
                uphill.append(f"{file.relative_to(ROOT)}:{node.lineno} imports {to}")
    assert not uphill


def test_library_code_imports_itself_relatively() -> None:
    absolute = []
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            absolute += [
                f"{file.relative_to(ROOT)}:{node.lineno}" for n in names if n.split(".")[0] in ("cmcr", *ROOMS)
            ]
    assert not absolute


def test_subpackages_begin_with_a_relative_import_that_leaves_the_folder() -> None:
    for room in ROOMS:
        for init in (ROOT / room).rglob("__init__.py"):
            statements = [n for n in ast.parse(init.read_text()).body if not isinstance(n, ast.Expr)]
            statements = [n for n in statements if getattr(n, "module", "") not in ("__future__", "typing")]
            first = statements[0]
            depth = len(init.parent.relative_to(ROOT).parts)
            assert isinstance(first, ast.ImportFrom), init
            assert first.level == depth + 1, f"{init} must import from above, so that a stray `import {room}` fails"


@pytest.mark.parametrize("room", ROOMS)
def test_a_stray_import_of_a_room_fails_at_once(room: str) -> None:
    run = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert "ImportError" in run.stderr


def test_help_answers_in_half_a_second_of_processor_time() -> None:
    """Processor time, so that a busy machine cannot fail it; on an idle one that is what a person waits."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'cmcr', '--help'], capture_output=True, text=True, check=True)\n"
        "assert 'encode' in done.stdout\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.5, f"cmcr --help took {min(times):.2f} s: something heavy is imported at the top"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cmcr import cli\n"
        "heavy = {'torch', 'h5py', 'numpy', 'pydantic', 'open_clip', 'laion_clap', 'matplotlib', 'faiss', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def built_wheel(source: Path, target: Path, backend: str) -> Path:
    target.mkdir()
    code = f"import setuptools.build_meta as b; print(b.{backend}({str(target)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return next(target.iterdir())


def test_sdist_builds_the_same_wheel_as_the_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "any-name"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, files.split("\0")):
        if (ROOT / name).exists():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    direct = built_wheel(checkout, tmp_path / "direct", "build_wheel")
    sdist = built_wheel(checkout, tmp_path / "sdist", "build_sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked")
    indirect = built_wheel(next((tmp_path / "unpacked").iterdir()), tmp_path / "indirect", "build_wheel")

    def members(wheel: Path) -> dict[str, int]:
        with zipfile.ZipFile(wheel) as z:
            return {i.filename: i.CRC for i in z.infolist() if not i.filename.endswith("RECORD")}

    assert members(direct) == members(indirect)
    packed = {name for name in members(direct) if name.startswith("cmcr/")}
    assert "cmcr/cli.py" in packed
    assert any(name.endswith(".safetensors") for name in packed), "the sandbox weights must ship"
    assert not any("/tests/" in name or "/benchmarks/" in name for name in packed)


def test_there_is_no_conftest_at_the_root() -> None:
    assert not (ROOT / "conftest.py").exists()
    assert (ROOT / "tests" / "conftest.py").exists()
