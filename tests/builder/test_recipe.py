"""The parts of a build: sources, flags, cache folder, lock, runner."""

from __future__ import annotations

import ast
import math
import os
import re
import sys
import time
from pathlib import Path

import pytest
from extension_tree import (
    posix,
)

from xlnet_fast.builder import build, compiler, lock, recipe
from xlnet_fast.builder.progress import Progress
from xlnet_fast.errors import BuildError

ROOT = Path(__file__).resolve().parents[2]
SILENT = Progress(lambda line: None)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    fresh, target = tmp_path / "fresh.so", tmp_path / "place" / "_C.so"
    target.parent.mkdir()
    fresh.write_text("new")
    target.write_text("old")
    with open(target) as reader:
        monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build._publish(fresh, target)
        assert target.read_text() == "old"
        assert list(target.parent.iterdir()) == [target]
        monkeypatch.undo()
        build._publish(fresh, target)
        assert target.read_text() == "new"
        assert reader.read() == "old", "who has the old one loaded keeps it"
    assert list(target.parent.iterdir()) == [target]


@posix
def test_the_runner_runs_all_and_only_so_many_at_once(tmp_path):
    program = (
        f"import os, time; p = {str(tmp_path)!r} + '/on' + str(os.getpid()); open(p, 'x')\n"
        f"n = len([f for f in os.listdir({str(tmp_path)!r}) if f.startswith('on')])\n"
        "time.sleep(0.4); os.unlink(p); print(n)"
    )
    steps = [compiler.Step(f"step {i}", (sys.executable, "-c", program)) for i in range(5)]
    runner = compiler.Runner(tmp_path / "log", tmp_path, 60, time.monotonic() + 60, SILENT)
    runner.run(steps, jobs=2)
    counts = re.findall(r"^\d$", (tmp_path / "log").read_text(), flags=re.MULTILINE)
    assert len(counts) == 5
    assert max(counts) == "2"
    assert not list(tmp_path.glob("on*"))


def test_a_command_that_cannot_be_started(tmp_path):
    runner = compiler.Runner(tmp_path / "log", tmp_path, 60, time.monotonic() + 60, SILENT)
    with pytest.raises(BuildError, match=r"/no/such cannot be started"):
        runner.run([compiler.Step("x", ("/no/such",))], jobs=1)


def test_the_microsoft_compiler_gets_its_own_words(tmp_path):
    linking = compiler.link_step(["cl.exe"], tmp_path, tmp_path / "_C.pyd")
    for step in compiler.cpp_steps(["cl.exe"], tmp_path):
        assert {"/std:c++17", "/nologo", "-c"} <= set(step.command)
        assert any(word.startswith("/Fo") and word.endswith(".obj") for word in step.command)
        assert "-fPIC" not in step.command
    assert {"/LD", "/EXPORT:PyInit__C", f"/Fe{tmp_path / '_C.pyd'}"} <= set(linking.command)


def test_every_step_has_the_flags_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XLNET_FAST_CXXFLAGS", "-O1 '-DTEXT=a b'")
    compiling = compiler.cpp_steps(["c++"], tmp_path)
    linking = compiler.link_step(["c++"], tmp_path, tmp_path / "_C.so")
    assert [step.what for step in compiling] == [
        path.relative_to(ROOT).as_posix() for path in recipe.sources()
    ]
    objects = [step.command[step.command.index("-o") + 1] for step in compiling]
    assert len(set(objects)) == len(objects)
    assert set(objects) <= set(linking.command)
    flags = recipe.compile_flags()
    assert flags[-2:] == ["-O1", "-DTEXT=a b"]
    assert {"-fno-math-errno", "-fno-trapping-math", "-O3"} <= set(flags)
    for step in compiling:
        start = step.command.index(flags[0])
        assert list(step.command[start : start + len(flags)]) == flags
    if sys.platform.startswith("linux"):
        assert {"-ldl", "-pthread"} <= set(linking.command)


def test_flags_reach_the_code_as_text():
    assert (
        dict(recipe.macros(["-fno-math-errno", "-Wl,-z", '-DA="b\\"']))["XLNET_FAST_FLAGS"]
        == '"-fno-math-errno -Wl,-z -DA=\\"b\\\\\\""'
    )


def test_the_recipe_knows_every_source():
    """A source that it misses is not compiled; a header that it misses changes unnoticed."""
    suffixes = {".cpp", ".h", ".cu", ".cuh"}
    emulation = ROOT / "csrc" / "cuda" / "emulation"  # for tests, not of the extension
    there = {path for path in (ROOT / "csrc").rglob("*") if path.suffix in suffixes}
    there = {path for path in there if emulation not in path.parents}
    assert {path for path in recipe.inputs() if path.suffix in suffixes} == there
    assert set(recipe.sources()) == {path for path in there if path.suffix == ".cpp"}
    assert set(recipe.cuda_sources()) == {path for path in there if path.suffix == ".cu"}


def test_setup_takes_sources_flags_and_headers_from_the_recipe():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    names = ("sources", "inputs", "compile_flags", "link_flags", "macros", "pybind11_include")
    for name in (*names, "cuda_sources"):
        assert f"recipe.{name}(" in text
    for name in ("find_wanted", "compile_command", "link_flags"):
        assert f"nvcc.{name}(" in text
    assert not re.findall(r"bindings\.cpp|-std|-O3|/O2", text)


def test_the_recipe_needs_only_the_standard_library():
    """setup.py runs it where nothing else is installed; pybind11 is imported where it is found."""
    tree = ast.parse(Path(recipe.__file__).read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert names - set(sys.stdlib_module_names) == {"pybind11"}


def test_the_digest_follows_every_input(installed, monkeypatch):
    monkeypatch.setattr(recipe, "PACKAGE", installed.package)
    seen = {recipe.digest()}
    for name in ("csrc/bindings.cpp", "csrc/header.h", "csrc/cpu/part.cpp", "_version.py"):
        with open(installed.package / name, "a") as file:
            file.write("\n")
        seen.add(recipe.digest())
    (installed.csrc / "cpu" / "more.h").write_text("a")
    seen.add(recipe.digest())
    (installed.csrc / "cpu" / "more.h").write_text("b")
    seen.add(recipe.digest())
    assert len(seen) == 7
    assert recipe.digest() in seen


@pytest.mark.skipif(sys.platform != "linux", reason="the rule of Linux")
def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XLNET_FAST_CACHE", raising=False)
    assert recipe.cache_root() == tmp_path / ".cache" / "xlnet_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert recipe.cache_root() == tmp_path / ".cache" / "xlnet_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert recipe.cache_root() == Path("/xdg/xlnet_fast")
    monkeypatch.setenv("XLNET_FAST_CACHE", "~/own")
    assert recipe.cache_root() == tmp_path / "own"


def test_a_user_without_a_home(installed, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XLNET_FAST_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(recipe, "PACKAGE", installed.package)
    assert recipe.cached_extension() is None
    with pytest.raises(BuildError, match="has no home; set XLNET_FAST_CACHE"):
        build.find_place()


def test_the_number_of_jobs(monkeypatch):
    for cores, jobs in ((None, 2), (1, 2), (3, 3), (64, 16)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert recipe.jobs() == jobs


def test_the_lock_is_let_go_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path / "l", 0, pytest.fail):
        raise ZeroDivisionError
    with lock.held(tmp_path / "l", 0, pytest.fail) as waited:
        assert not waited


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock, "_lock", refuse)
    with (
        pytest.raises(BuildError, match=r"has no file locks \(.*No locks available.*local disk"),
        lock.held(tmp_path / "lock", math.inf, pytest.fail),
    ):
        pass
