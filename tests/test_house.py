"""The house itself: light imports, exact public faces, small files, imports that run one way."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import foreword

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "foreword"
ROOMS = sorted(path.parent.name for path in SRC.glob("*/__init__.py"))
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in SRC.rglob("*.py"))
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

FACE = {
    "LLM",
    "AsyncLLM",
    "SamplingParams",
    "Result",
    "Output",
    "TokenLogprob",
    "Chunk",
    "Progress",
    "Prefix",
    "PrefixStats",
    "ForewordError",
    "__version__",
}

HEAVY = {"torch", "numpy", "transformers", "tokenizers"}
START_LIMIT = 0.100  # seconds beyond a bare interpreter
LIGHT = {"import foreword": "import foreword"}
ROOMS_WITHOUT_TENSORS = {
    f"import foreword.{room}": f"import foreword.{room}"
    for room in ("scheduling", "cache", "admission", "simulation")
}
if "cli" in ROOMS:
    LIGHT["foreword --help"] = (
        "import sys; sys.argv = ['foreword', '--help']\n"
        "from foreword.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
    )


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENV, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def start_seconds(code: str, runs: int = 7) -> float:
    """The least processor time in which a fresh interpreter runs `code`.

    Starting up is single-threaded, so on an idle machine this is the wall time. Unlike wall time
    it does not count the turns that other processes take, and the least of several runs has the
    byte code compiled and the files in memory.
    """
    best = float("inf")
    for _ in range(runs):
        child = subprocess.Popen(
            [sys.executable, "-c", code], env=ENV, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        best = min(best, usage.ru_utime + usage.ru_stime)
    return best


@pytest.mark.parametrize(
    "code", (LIGHT | ROOMS_WITHOUT_TENSORS).values(), ids=LIGHT | ROOMS_WITHOUT_TENSORS
)
def test_a_light_start_loads_nothing_heavy(code: str) -> None:
    report = "import sys; print('loaded:', *sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(python(f"{code}\n{report}").rpartition("loaded:")[2].split())
    assert "sys" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("code", LIGHT.values(), ids=LIGHT)
def test_a_light_start_is_quick(code: str) -> None:
    assert start_seconds(code) - start_seconds("pass") < START_LIMIT


def test_the_face_is_what_the_documentation_promises() -> None:
    assert set(foreword.__all__) == FACE
    assert set(dir(foreword)) == FACE


@pytest.mark.parametrize("name", sorted(FACE))
def test_every_name_of_the_face_resolves(name: str) -> None:
    assert getattr(foreword, name) is not None


def test_an_unknown_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        foreword.LMM  # noqa: B018


LAZY_TOOLS = {"annotations", "Any", "TYPE_CHECKING", "import_module"}  # what a lazy face is made of


def _public_names(module: ModuleType) -> set[str]:
    inside = f"{module.__name__}."
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in LAZY_TOOLS
        and not (isinstance(value, ModuleType) and value.__name__.startswith(inside))
    }


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_shows_exactly_its_all(room: str) -> None:
    module = importlib.import_module(f"foreword.{room}")
    lazy = {name for name in module.__all__ if name not in vars(module)}
    assert all(hasattr(module, name) for name in lazy)
    assert len(module.__all__) == len(set(module.__all__))
    assert _public_names(module) | lazy == set(module.__all__)


def _imports(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES)
def test_a_room_is_entered_through_its_face(path: str) -> None:
    """`foreword.cache._tree` is for `foreword.cache` alone; `foreword._errors` is everybody's."""
    home = (ROOT / path).relative_to(SRC).parts[0]
    for name in _imports(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        parts = name.split(".")
        if parts[0] == "foreword" and len(parts) > 2 and parts[1] in ROOMS and parts[1] != home:
            assert not parts[2].startswith("_"), f"{path} reaches behind the face: {name}"


@pytest.mark.parametrize("path", MODULES)
def test_a_file_has_one_subject(path: str) -> None:
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) < 500


def test_imports_run_one_way() -> None:
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENV, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " kept, 0 broken" in done.stdout


def test_nothing_names_one_machine() -> None:
    """Paths of the machine something was written on, and package hosts, help nobody else."""
    forbidden = [f"/{name}/" for name in ("work", "root")] + ["pypi" + ".org", "python" + "hosted"]
    suffixes = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".jsonl", ".cfg", ".svg"}
    skipped = {"site", "dist", "build", "__pycache__"}
    offences = []
    for folder, subfolders, files in os.walk(ROOT):
        subfolders[:] = [
            s for s in subfolders if s not in skipped and (not s.startswith(".") or s == ".ci")
        ]
        for name in files:
            path = Path(folder, name)
            if path.suffix in suffixes or name in {"Makefile", "run"}:
                text = path.read_text(encoding="utf-8")
                offences += [
                    f"{path.relative_to(ROOT)}: {word}" for word in forbidden if word in text
                ]
    assert not offences
