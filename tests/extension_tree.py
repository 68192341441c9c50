"""A copy of the package beside tiny C++ sources, whose builds take less than a second."""

from __future__ import annotations

import compileall
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="the fake compilers are shell scripts")
has_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)
proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
BOTH = ["bindings.cpp", "part.cpp"]
# No pybind11, which takes seconds to compile. `part` shows that both objects are linked.
BINDINGS = """
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS  // not <cmath> for <math.h>: half the time of a compilation
#include <Python.h>
#include "header.h"
extern "C" const char* part();
#ifdef XLNET_FAST_CUDA
extern "C" int launch();
#define ARCHS XLNET_FAST_CUDA
#define NVCC XLNET_FAST_CUDA_COMPILER
#else
static int launch() { return -1; }
#define ARCHS ""
#define NVCC ""
#endif
static PyObject* build_info(PyObject*, PyObject*) {
  PyObject* archs = PyObject_CallMethod(PyUnicode_FromString(ARCHS), "split", NULL);
  PyObject* flags = PyObject_CallMethod(PyUnicode_FromString(XLNET_FAST_FLAGS), "split", NULL);
  return Py_BuildValue("{s:s,s:s,s:N,s:[s],s:[s],s:s,s:N,s:s,s:i,s:s}",
                       "version", XLNET_FAST_VERSION, "compiler", MARK, "flags", flags,
                       "attention_isa", part(), "isa_compiled", "baseline", "isa_used", part(),
                       "cuda_archs", archs, "cuda_compiler", NVCC, "launch", launch(),
                       "pybind11", "0");
}
// It has every entry, in name.
static PyObject* entry(PyObject*, PyObject* name) {
  if (PyUnicode_ReadChar(name, 0) != '_') Py_RETURN_NONE;
  PyErr_SetObject(PyExc_AttributeError, name);
  return NULL;
}
static PyMethodDef methods[] = {{"build_info", build_info, METH_NOARGS, ""},
                                {"__getattr__", entry, METH_O, ""}, {}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "", -1, methods};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
"""
PART = 'extern "C" const char* part() { return "tiny"; }\n'
KERNEL = """
#include "kernel.cuh"
#ifdef __CUDACC__
__global__ void kernel(int* out) { *out = ANSWER; }
extern "C" int launch() {
  kernel<<<1, 1>>>(nullptr);
  return static_cast<int>(cudaGetLastError());
}
#else
extern "C" int launch() { return ANSWER; }
#endif
"""
LOOK = (
    "import json\n"
    "from xlnet_fast import _extension as e\n"
    "print(json.dumps([e.path(), e.why_missing(), e.build_info()]))\n"
)


def heed_interrupts() -> None:
    """A shell starts what runs in its background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def copy_of_the_package(folder: Path) -> Path:
    """As a build needs it, in bytecode too: compiling that takes most of a build's time."""
    ignored = shutil.ignore_patterns(
        "__pycache__", "*.so", "*.pyd", "kernels", "ops", "hf", "train", "qualifier"
    )
    shutil.copytree(ROOT / "xlnet_fast", folder, ignore=ignored)
    assert compileall.compile_dir(folder, quiet=1)
    return folder


class Tree:
    """A copy of the package with tiny sources, and its own cache.

    package: what :func:`copy_of_the_package` made.
    """

    def __init__(self, root: Path, installed: bool, package: Path):
        self.root, self.package, self.cache = root, root / "xlnet_fast", root.parent / "cache"
        self.csrc = self.package / "csrc" if installed else root / "csrc"
        shutil.copytree(package, self.package)
        (self.csrc / "cpu").mkdir(parents=True)
        (self.csrc / "bindings.cpp").write_text(BINDINGS)
        (self.csrc / "header.h").write_text('#define MARK "first"\n')
        (self.csrc / "cpu" / "part.cpp").write_text(PART)
        if not installed:
            (root / "setup.py").write_text("")

    def environment(self, **changes: str | Path) -> dict[str, str]:
        ours = ("XLNET_FAST_", "CXX", "LDFLAGS", "PYTHON", "CUDA", "NVCC")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        mine = {"XLNET_FAST_CACHE": self.cache, "PYTHONPATH": self.root, "XLNET_FAST_CUDA": "1"}
        if "XLNET_FAST_NO_CUDA" in changes:
            del mine["XLNET_FAST_CUDA"]
        mine |= changes
        return kept | {name: str(value) for name, value in mine.items()}

    def start(self, *options: str, **environment: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "xlnet_fast", "build", *options],
            cwd=self.root.parent,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_interrupts if os.name == "posix" else None,
        )

    def build(self, *options: str, **environment: str | Path) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of `xlnet-fast build`."""
        process = self.start(*options, **environment)
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def look(self, **environment: str | Path) -> tuple[Path | None, str | None, dict | None]:
        """(path, reason, build_info) that a new process finds."""
        done = subprocess.run(
            [sys.executable, "-c", LOOK],
            cwd=self.root.parent,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=True,
        )
        path, reason, info = json.loads(done.stdout)
        return None if path is None else Path(path), reason, info

    def add_kernel(self) -> None:
        """A CUDA source, which a C++ compiler takes too, and what is no part of the extension."""
        (self.csrc / "cuda" / "instantiations").mkdir(parents=True)
        (self.csrc / "cuda" / "instantiations" / "kernel.cu").write_text(
            KERNEL.replace("kernel.cuh", "../kernel.cuh")
        )
        (self.csrc / "cuda" / "kernel.cuh").write_text("#define ANSWER 7\n")
        (self.csrc / "cuda" / "emulation").mkdir()
        (self.csrc / "cuda" / "emulation" / "bindings.cpp").write_text("#error for tests only\n")
        (self.csrc / "cuda" / "emulation" / "block.h").write_text("#error for tests only\n")

    def mark(self, word: str) -> None:
        (self.csrc / "header.h").write_text(f'#define MARK "{word}"\n')

    def extensions(self) -> dict[Path, bytes]:
        """Those that are there, and what is in them."""
        found = [path for folder in (self.package, self.cache) for path in folder.rglob("_C.*")]
        return {path: path.read_bytes() for path in found}

    def leftovers(self) -> list[str]:
        """What a build leaves besides the extension, its lock and its log."""
        folders = [self.package, self.root / "build", self.cache]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        pattern = r"build\.l(ock|og)|.*\.(py|pyc|cpp|h|cu|cuh|typed|json|html|css|js|svg)|_C\.cp.*"
        return [str(path) for path in files if not re.fullmatch(pattern, path.name)]


def fails(tree: Tree, *options: str, **environment: str | Path) -> str:
    """What a failing build says; what was there before stays, and nothing else."""
    before = tree.extensions()
    code, _, err = tree.build(*options, **environment)
    assert code == 1, err
    assert err.startswith("error: ")
    assert tree.leftovers() == []
    assert tree.extensions() == before
    return err


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids_in(file: Path, count: int) -> list[int]:
    """Process ids that a script writes, waited for."""
    deadline = time.monotonic() + 30
    while not file.exists() or len(file.read_text().split()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(word) for word in file.read_text().split()]


def all_gone(pids: list[int]) -> bool:
    """Whether they end within two seconds: a killed process may take a moment."""
    deadline = time.monotonic() + 2
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, pids))
