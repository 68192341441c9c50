"""Rules of the house that no linter knows: see CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CPP_SUFFIXES = {".cpp", ".h", ".cu", ".cuh"}
CPP = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in CPP_SUFFIXES)
PYTHON = sorted(
    path
    for folder in ("xlnet_fast", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
MAX_LINES = 1000  # the size that the style page warns of; 350 is what to aim at
# Split, so that this file does not find itself.
UNFINISHED = re.compile(
    "|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error", "XX" + "X"))
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_are_finished_and_of_a_readable_length():
    assert PYTHON
    assert CPP
    for path in (*PYTHON, *CPP):
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        assert lines <= MAX_LINES, f"{name(path)} has more than {MAX_LINES} lines: split it"
        assert not UNFINISHED.findall(text), name(path)


@pytest.mark.parametrize("folder", sorted({path.parent for path in CPP}), ids=name)
def test_compiled_code_keeps_its_rooms(folder):
    for path in CPP:
        if path.parent == folder:
            check_includes(path)


def check_includes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    includes = re.findall(r'#include\s*[<"]([^>"]+)', text)
    torch = [header for header in includes if header.split("/")[0] in ("ATen", "c10", "torch")]
    assert not torch, f"{name(path)} includes torch headers, and kernels compile without torch"
    if path.name == "bindings.cpp":
        assert "PYBIND11_MODULE(_C" in text
    elif not path.name.startswith("bindings_"):
        assert "pybind11/" not in " ".join(includes), "bindings belong in csrc/bindings*"


def test_every_pointer_of_a_kernel_has_its_shape_beside_it():
    text = (ROOT / "csrc" / "params.h").read_text(encoding="utf-8")
    pointers = re.findall(r"^\s*[\w:<> ]+\*\s*\w+;.*$", text, flags=re.MULTILINE)
    assert pointers
    for line in pointers:
        assert re.search(r"//.*\[.+\]", line), f"no shape beside {line.strip()}"
