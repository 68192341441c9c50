"""What an install puts where, with a compiler, without one, and with one that fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from xlnet_fast._version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
# Wheels hold their files; tests, caches and earlier builds would only be copied.
SHIPPED = [
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "LICENSE",
    "csrc",
    "xlnet_fast",
    "benchmarks",
]
IGNORED = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.egg-info", "build")


@pytest.fixture
def checkout(tmp_path):
    """A copy of what goes into a wheel: building leaves files beside the sources."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=IGNORED)
        else:
            shutil.copy(source, copy / name)
    shutil.copy(ROOT / "README.md", copy / "README.md")
    return copy


# Takes the object that it made before of a source with the same macros, among the same files.
KEEPING_CXX = """#!{python} -SE
import hashlib, pathlib, shutil, subprocess, sys
words = sys.argv[1:]
if "-c" not in words:
    sys.exit(subprocess.call([{cxx!r}, *words]))
at = words.index("-o")
source = pathlib.Path(words[words.index("-c") + 1]).resolve()
csrc = next(folder for folder in source.parents if folder.name == "csrc")
macros = sorted(set(word for word in words if word.startswith("-D")))
total = hashlib.sha256(repr((source.relative_to(csrc), macros)).encode())
for file in sorted(csrc.rglob("*.*")):
    total.update(file.read_bytes())
kept = pathlib.Path({folder!r}, total.hexdigest())
if not kept.exists():
    code = subprocess.call([{cxx!r}, *words])
    if code != 0:
        sys.exit(code)
    shutil.copy(words[at + 1], kept)
shutil.copy(kept, words[at + 1])
"""


@pytest.fixture(scope="module")
def compiling(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables for a build that compiles: in all tests each source is compiled once, at -O0.

    What these tests ask is which files arrive, and optimising them takes most of a build's time.
    """
    cxx = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if cxx is None or os.name != "posix":
        return {}
    folder = tmp_path_factory.mktemp("compiler")
    script = folder / "c++"
    script.write_text(KEEPING_CXX.format(python=sys.executable, cxx=cxx, folder=str(folder)))
    script.chmod(0o755)
    # Not asserting is what Python's own flags say and `xlnet-fast build` does not.
    flags = "-O0 -DNDEBUG"
    return {"CC": str(script), "CXX": str(script), "XLNET_FAST_CXXFLAGS": flags}


def setup(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python setup.py ...` in `checkout`, its variables set by `environment` alone."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("XLNET_FAST_") and name not in ("CC", "CXX", "CFLAGS", "CXXFLAGS")
    }
    # nvcc would take minutes: what it does to a build is asked of tiny sources, in tests/builder.
    defaults = {"XLNET_FAST_NO_CUDA": "1"}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=checkout,
        env=inherited | defaults | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def wheel(checkout: Path, **environment: str) -> tuple[str, set[str], str]:
    """(the wheel's file name, the files in it, what the build said)."""
    done = setup(checkout, "--quiet", "bdist_wheel", "--dist-dir", "out", **environment)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    (path,) = (checkout / "out").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return path.name, set(archive.namelist()), said


def compiled(names: set[str]) -> list[str]:
    return [name for name in names if re.fullmatch(r"xlnet_fast/_C\..*(so|pyd)", name)]


def left_out(said: str) -> list[str]:
    return [line for line in said.splitlines() if "extension is left out" in line]


has_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="needs a C++ compiler"
)


def test_pure_wheel(checkout):
    name, files, said = wheel(checkout, XLNET_FAST_NO_EXT="1")
    assert name == f"xlnet_fast-{__version__}-py3-none-any.whl"
    assert compiled(files) == []
    assert len(left_out(said)) == 1
    assert "XLNET_FAST_NO_EXT is set" in left_out(said)[0]

    assert "xlnet_fast/py.typed" in files
    assert any(name.endswith("licenses/LICENSE") for name in files)
    assert not [name for name in files if name.startswith(("benchmarks", "tests", "csrc"))]
    for folder, prefix in (("xlnet_fast", ""), ("benchmarks", "xlnet_fast/")):
        sources = {
            prefix + path.relative_to(checkout).as_posix()
            for path in (checkout / folder).rglob("*.py")
        }
        assert sources
        assert sources <= files, f"not in the wheel: {sorted(sources - files)}"
    compiled_later = {
        "xlnet_fast/" + path.relative_to(checkout).as_posix()
        for pattern in ("csrc/**/*.h", "csrc/**/*.cpp", "csrc/**/*.cu", "csrc/**/*.cuh")
        for path in checkout.glob(pattern)
    }
    assert {"xlnet_fast/csrc/bindings.cpp", "xlnet_fast/csrc/build_info.h"} <= compiled_later
    missing = compiled_later - files
    assert not missing, f"`xlnet-fast build` needs them in the wheel: {sorted(missing)}"
    assert {f"xlnet_fast/kernels/triton/{name}.json" for name in ("safe_tiles", "tuned")} <= files
    page = {
        path.relative_to(checkout).as_posix()
        for path in (checkout / "xlnet_fast" / "serve" / "protocols" / "page").iterdir()
    }
    assert page
    assert page <= files, f"not in the wheel: {sorted(page - files)}"
    results = {
        "xlnet_fast/" + path.relative_to(checkout).as_posix()
        for path in (checkout / "benchmarks" / "results").rglob("*")
        if path.is_file()
    }
    assert results <= files, f"not in the wheel: {sorted(results - files)}"


@has_compiler
def test_wheel_with_the_extension(checkout, compiling):
    name, files, said = wheel(checkout, XLNET_FAST_REQUIRE_EXT="1", **compiling)
    assert len(compiled(files)) == 1
    assert not name.endswith("none-any.whl")
    assert left_out(said) == []


@has_compiler
def test_an_install_without_a_compiler_can_build_later(checkout, compiling, tmp_path):
    """The true sources, out of a pure wheel, into the cache, by the command."""
    name, _, _ = wheel(checkout, XLNET_FAST_NO_EXT="1")
    site, cache = tmp_path / "site", tmp_path / "cache"
    with zipfile.ZipFile(checkout / "out" / name) as archive:
        archive.extractall(site)
    environment = (
        os.environ
        | compiling
        | {
            "PYTHONPATH": str(site),
            "XLNET_FAST_CACHE": str(cache),
            "XLNET_FAST_NO_CUDA": "1",
        }
    )

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=290,
        )

    done = python("-m", "xlnet_fast", "build")
    assert done.returncode == 0, done.stderr
    (built,) = cache.glob(f"{__version__}-*/_C.*")
    assert f"{built}: built in" in done.stdout
    program = (
        "from xlnet_fast import _extension as e\n"
        "words = e.require().philox4x32((0, 0, 0, 0), (0, 0))\n"
        "print(e.path(), words[0] == 0x6627E8D5, *e.build_info()['flags'])\n"
    )
    path, right, *flags = python("-c", program).stdout.split()
    assert (Path(path), right) == (built, "True")
    assert "-fno-math-errno" in flags or os.name != "posix"
    assert not compiled({file.relative_to(site).as_posix() for file in site.rglob("*")})


def test_failing_compiler_is_told_and_does_not_fail_the_build(checkout):
    _, files, said = wheel(checkout, CC="false", CXX="false")
    assert compiled(files) == []
    assert "xlnet_fast/philox.py" in files
    assert len(left_out(said)) == 1, said
    assert "CompileError" in left_out(said)[0]
    assert "`xlnet-fast build`" in left_out(said)[0]


@pytest.mark.skipif(os.name != "posix", reason="the fake compiler is a shell script")
def test_the_sources_are_compiled_side_by_side(checkout, tmp_path):
    notes, cxx = tmp_path / "notes", tmp_path / "cxx"
    cxx.write_text(f"#!/bin/sh\necho begin >> {notes}\nsleep 1\necho end >> {notes}\nexit 1\n")
    cxx.chmod(0o755)
    setup(checkout, "build_ext", CC=str(cxx), CXX=str(cxx))
    assert notes.read_text().split()[:2] == ["begin", "begin"]


def test_missing_compiler_is_told_and_does_not_fail_the_build(checkout):
    _, files, said = wheel(checkout, CC="no-such-compiler", CXX="no-such-compiler")
    assert compiled(files) == []
    assert len(left_out(said)) == 1, said
    assert "no-such-compiler" in left_out(said)[0]


def test_required_extension_fails_loudly(checkout):
    done = setup(
        checkout, "--quiet", "bdist_wheel", CC="false", CXX="false", XLNET_FAST_REQUIRE_EXT="1"
    )
    assert done.returncode != 0
    assert "XLNET_FAST_REQUIRE_EXT is set, but" in done.stderr
    assert not list(checkout.glob("dist/*.whl"))
    done = setup(
        checkout, "--quiet", "bdist_wheel", XLNET_FAST_NO_EXT="1", XLNET_FAST_REQUIRE_EXT="1"
    )
    assert done.returncode != 0
    assert "XLNET_FAST_NO_EXT is set" in done.stderr


def test_in_place_without_a_compiler(checkout):
    """What `benchmarks.reproduce` runs on a machine that may have none."""
    done = setup(checkout, "build_ext", "--inplace", CC="false", CXX="false")
    assert done.returncode == 0, done.stderr
    assert len(left_out(done.stderr)) == 1
    assert not list(checkout.glob("xlnet_fast/_C.*"))


@has_compiler
def test_editable_install_finds_the_benchmarks(checkout, compiling, tmp_path):
    """`pip install -e .` maps xlnet_fast.benchmarks to the top-level folder, outside of it too."""
    venv = tmp_path / "site"
    offline = ["--quiet", "--disable-pip-version-check", "--no-index"]
    alone = ["--no-deps", "--no-build-isolation", "--target", str(venv)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, *alone, "-e", "."],
        cwd=checkout,
        env=os.environ | compiling | {"XLNET_FAST_NO_CUDA": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(checkout.glob("xlnet_fast/_C.*"))) == 1
    # A .pth file is read in site folders only, so the folder is made one, in a bare interpreter.
    program = (
        f"import site; site.addsitedir({str(venv)!r})\n"
        "import importlib.util as u, sys\n"
        "print(u.find_spec('xlnet_fast').origin)\n"
        "sys.modules['xlnet_fast'] = u.module_from_spec(u.find_spec('xlnet_fast'))\n"
        "print(u.find_spec('xlnet_fast.benchmarks').origin)\n"
        "print(u.find_spec('xlnet_fast._C').origin)\n"
    )
    done = subprocess.run(
        [sys.executable, "-SE", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    package, benchmarks, extension = map(Path, done.stdout.splitlines())
    assert package == checkout / "xlnet_fast" / "__init__.py"
    assert benchmarks == checkout / "benchmarks" / "__init__.py"
    assert extension.parent == checkout / "xlnet_fast"


def test_sdist_can_be_built_from(checkout):
    done = setup(checkout, "--quiet", "sdist", "--dist-dir", "out", XLNET_FAST_NO_EXT="1")
    assert done.returncode == 0, done.stderr
    (path,) = (checkout / "out").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    folders = {"csrc": ("h", "cpp", "cu", "cuh"), "xlnet_fast": ("py",), "benchmarks": ("py",)}
    wanted = {
        path.relative_to(checkout).as_posix()
        for folder, suffixes in folders.items()
        for suffix in suffixes
        for path in checkout.glob(f"{folder}/**/*.{suffix}")
    }
    wanted |= {"setup.py", "pyproject.toml", "LICENSE", "README.md", "xlnet_fast/py.typed"}
    assert wanted <= files, f"not in the sdist: {sorted(wanted - files)}"


def test_build_needs_neither_torch_nor_a_compiler():
    """Build isolation installs only these; torch in that list would bring gigabytes."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    names = {re.match(r"[\w.-]+", need)[0].lower() for need in project["build-system"]["requires"]}
    assert names == {"setuptools", "pybind11"}
    assert project["project"]["scripts"] == {"xlnet-fast": "xlnet_fast.cli:main"}
    assert project["project"]["requires-python"] == ">=3.10"
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) torch\b", source, flags=re.MULTILINE)
