"""`xlnet-fast build`: where the extension goes, when it is made, and who waits for whom.

The sources are tiny ones; the true ones are built in test_packaging.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from extension_tree import (
    BOTH,
    has_compiler,
    pids_in,
    posix,
)

from xlnet_fast._version import __version__
from xlnet_fast.builder import build, lock, recipe

# --- where it goes, and when it is made ----------------------------------------------------------


@posix
@has_compiler
def test_a_checkout_gets_it_beside_the_package_and_only_when_needed(checkout, counting):
    cxx, compiled = counting
    assert checkout.look()[0] is None
    code, out, err = checkout.build(CXX=cxx)
    target = checkout.package / recipe.extension_name()
    assert (code, err) == (0, "")
    assert f"{target}: built in" in out
    assert "attention variants on this CPU: tiny" in out
    assert compiled() == BOTH
    path, reason, info = checkout.look()
    assert (path, reason) == (target, None)
    assert (info["version"], info["compiler"]) == (__version__, "first")
    assert checkout.leftovers() == []
    assert not checkout.cache.exists()

    code, out, _ = checkout.build(CXX=cxx)
    assert code == 0
    assert "there already" in out
    assert compiled() == []
    assert checkout.build("--force", CXX=cxx)[0] == 0
    assert compiled() == BOTH

    checkout.mark("second")
    assert checkout.build(CXX=cxx)[0] == 0
    assert compiled() == BOTH
    assert checkout.look()[2]["compiler"] == "second"


@posix
@has_compiler
def test_other_flags_are_another_extension(checkout, counting):
    cxx, compiled = counting
    for flags, expected in (("", BOTH), ("-O1", BOTH), ("-O1", []), ("", BOTH)):
        assert checkout.build(CXX=cxx, XLNET_FAST_CXXFLAGS=flags)[0] == 0
        assert compiled() == expected


@posix
@has_compiler
def test_a_source_that_changes_during_the_build_is_not_taken_for_built(checkout, script):
    change = f"printf '#define MARK \"meanwhile\"\\n' > {checkout.csrc / 'header.h'}"
    cxx = script("late", f'c++ "$@" || exit 1\ncase "$*" in *part.cpp*) {change};; esac')
    assert checkout.build(CXX=cxx)[0] == 0
    _, out, _ = checkout.build()
    assert "built in" in out
    assert checkout.look()[2]["compiler"] == "meanwhile"


@posix
@has_compiler
def test_an_installed_package_gets_it_in_the_cache(installed, counting):
    cxx, compiled = counting
    code, out, _ = installed.build(CXX=cxx)
    assert code == 0
    path, reason, info = installed.look()
    assert path.parent.parent == installed.cache
    assert str(path) in out
    assert path.name == recipe.extension_name()
    assert path.parent.name.startswith(f"{__version__}-")
    assert path.parent.stat().st_mode & 0o077 == 0
    assert (reason, info["isa_used"]) == (None, "tiny")
    assert not list(installed.package.glob("_C.*"))
    assert installed.leftovers() == []
    assert "there already" in installed.build(CXX=cxx)[1]
    assert compiled() == BOTH
    assert installed.look(XLNET_FAST_CACHE="/no/such/cache")[0] is None


@posix
@has_compiler
def test_one_in_the_cache_of_other_sources_or_another_version_is_not_loaded(installed):
    assert installed.build()[0] == 0
    first = installed.look()[0]
    installed.mark("second")
    path, reason, _ = installed.look()
    assert path is None
    assert "xlnet-fast build" in reason
    assert installed.build()[0] == 0
    assert installed.look()[0] not in (None, first)
    installed.mark("first")
    assert installed.look()[0] == first

    version = installed.package / "_version.py"
    version.write_text(version.read_text().replace(__version__, "9.9.9"))
    assert installed.look()[0] is None
    # Not even where somebody moved it to the right folder.
    program = "from xlnet_fast.builder import recipe; print(recipe.cached_extension())"
    wanted = subprocess.check_output(
        [sys.executable, "-c", program],
        cwd=installed.root,
        env=installed.environment(),
        text=True,
    )
    Path(wanted.strip()).parent.mkdir()
    shutil.copy(first, wanted.strip())
    path, reason, _ = installed.look()
    assert path is None
    assert f"built from version {__version__} and this is 9.9.9" in reason


@posix
@has_compiler
def test_a_damaged_one_is_told_and_built_anew(installed):
    assert installed.build()[0] == 0
    path, _, _ = installed.look()
    path.write_bytes(b"no library")
    found, reason, _ = installed.look()
    assert found is None
    assert str(path) in reason
    assert "xlnet-fast build --force" in reason
    assert "built in" in installed.build()[1]
    assert installed.look()[0] == path


@posix
@has_compiler
def test_that_of_another_copy_of_the_package_is_neither_loaded_nor_replaced(
    checkout, installed, tmp_path
):
    assert checkout.build()[0] == 0
    others = checkout.package / recipe.extension_name()
    before = others.read_bytes()
    # What setuptools' finder of an editable installation does, in every process.
    (tmp_path / "finder").mkdir()
    (tmp_path / "finder" / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.util import spec_from_file_location\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'xlnet_fast._C':\n"
        f"            return spec_from_file_location(name, {str(others)!r})\n"
        "sys.meta_path.append(Finder)\n"
    )
    both = os.pathsep.join([str(installed.root), str(tmp_path / "finder")])
    path, reason, _ = installed.look(PYTHONPATH=both)
    assert path is None
    assert "was not built" in reason
    assert installed.build(PYTHONPATH=both)[0] == 0
    assert installed.look(PYTHONPATH=both)[0].parent.parent == installed.cache
    assert others.read_bytes() == before


@posix
@has_compiler
def test_one_that_came_with_the_package_stays(installed):
    assert installed.build()[0] == 0
    own = installed.package / recipe.extension_name()
    shutil.move(installed.look()[0], own)
    assert f"{own}: there already" in installed.build()[1]
    code, _, err = installed.build("--force")
    assert code == 1
    assert f"{own} would be loaded before" in err
    assert "belongs to the installer" in err


@has_compiler
def test_a_checkout_that_cannot_be_written_to_uses_the_cache(checkout, monkeypatch):
    monkeypatch.setenv("XLNET_FAST_CACHE", str(checkout.cache))
    monkeypatch.setattr(recipe, "PACKAGE", checkout.package)
    assert build.find_place().target.parent == checkout.package
    monkeypatch.setattr(os, "access", lambda path, mode: path != checkout.package)
    place = build.find_place()
    assert place.target == recipe.cached_extension()
    assert place.work.parent == checkout.cache


@posix
@has_compiler
def test_the_function_finds_what_it_built(checkout):
    program = (
        "from xlnet_fast import _extension as e\n"
        "from xlnet_fast.builder.build import build_extension\n"
        "assert e.load() is None\n"
        "lines = []\n"
        "built = build_extension(say=lines.append)\n"
        "assert built.compiled and built.time_s > 0, lines\n"
        "count = len(lines) - 1\n"
        "assert lines[0].startswith(f'compiling {count - 1} files with'), lines\n"
        "assert lines[-1].startswith(f'{count} of {count}: the extension ('), lines\n"
        "assert str(built.path) == e.path() and built.build_info == e.build_info()\n"
        "module = e.load()\n"
        "assert not build_extension().compiled\n"
        "assert e.load() is module\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=checkout.root,
        env=checkout.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- several processes ---------------------------------------------------------------------------


@posix
@has_compiler
@pytest.mark.parametrize("options", [[], ["--force"]])
def test_of_several_processes_one_builds_and_the_others_take_it(installed, counting, options):
    cxx, compiled = counting
    slow = f"{cxx.parent / 'slow'}"
    Path(slow).write_text(f'#!/bin/sh\nsleep 1\nexec {cxx} "$@"\n')
    Path(slow).chmod(0o755)
    processes = [installed.start(*options, CXX=slow) for _ in range(3)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert compiled() == BOTH
    outs = sorted(out for out, _ in said)
    assert sum("built in" in out for out in outs) == 1
    assert sum("another process builds the extension; waiting for it" in out for out in outs) == 2
    assert sum("there already" in out for out in outs) == 2


@posix
@has_compiler
def test_the_lock_of_a_dead_process_holds_nobody_up(checkout, sleeper):
    cxx, file = sleeper
    process = checkout.start(CXX=cxx)
    pids = pids_in(file, 4)
    process.kill()
    process.communicate()
    try:
        # Its compilers live on, which a lock handed down to them would show.
        code, out, err = checkout.build("--timeout", "60")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    assert code == 0, err
    assert "waiting" not in out
    assert checkout.leftovers() == []


@has_compiler
def test_waiting_has_an_end(checkout):
    folder = checkout.root / "build" / f"xlnet-fast-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True)
    with lock.held(folder / "build.lock", time.monotonic(), pytest.fail) as waited:
        assert not waited
        code, out, err = checkout.build("--timeout", "0.5")
    assert code == 1
    assert out == "another process builds the extension; waiting for it\n"
    assert f"it holds the lock {folder / 'build.lock'}" in err
    assert "another process" in err
