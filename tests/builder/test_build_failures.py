"""How a build fails: told clearly, with nothing half-built and no compiler left."""

from __future__ import annotations

import math
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from extension_tree import (
    BINDINGS,
    PART,
    all_gone,
    fails,
    has_compiler,
    pids_in,
    posix,
    proc,
)

from xlnet_fast.builder import build, compiler, recipe
from xlnet_fast.builder.progress import Progress
from xlnet_fast.errors import ArgumentError, BuildError

SILENT = Progress(lambda line: None)


@posix
def test_no_compiler(checkout):
    err = fails(checkout, PATH="/no/such/folder")
    assert re.search(r"no C\+\+ compiler is on the path \(looked for .*c\+\+.*, clang\+\+", err)
    assert "apt install g++" in err
    assert "'no-such-compiler', which is not on the path" in fails(checkout, CXX="no-such-compiler")


@posix
@has_compiler
def test_an_error_in_the_source(checkout):
    assert checkout.build()[0] == 0
    (checkout.csrc / "cpu" / "part.cpp").write_text("\n\nint part() { return nonsense; }\n")
    err = fails(checkout)
    assert "the compiler failed on csrc/cpu/part.cpp (exit code 1)" in err
    assert re.search(r"^    .*part\.cpp:3:.*nonsense", err, flags=re.MULTILINE)
    log = Path(re.search(r"all it said is in (.*build\.log)", err)[1])
    assert "nonsense" in log.read_text()
    assert "-std=c++17" in log.read_text()


@posix
def test_the_end_of_a_long_message_is_shown_and_the_log_has_it_all(checkout, script):
    cxx = script("wordy", "for i in $(seq 100); do echo line $i; done; exit 3")
    err = fails(checkout, CXX=cxx)
    assert "(exit code 3)" in err
    assert re.findall(r"line (\d+)$", err, flags=re.MULTILINE) == [str(i) for i in range(86, 101)]
    log = Path(re.search(r"all it said is in (.*build\.log)", err)[1])
    assert {f"line {i}" for i in range(1, 101)} <= set(log.read_text().splitlines())
    assert "it said nothing" in fails(checkout, CXX=script("mute", "exit 1"))


@posix
@has_compiler
def test_linking_and_loading_failures(checkout):
    undefined = PART + "int missing(); int use() { return missing(); }\n"
    (checkout.csrc / "cpu" / "part.cpp").write_text(undefined)
    assert "failed on the extension" in fails(checkout, LDFLAGS="-Wl,--no-undefined")
    err = fails(checkout, LDFLAGS="-Wl,-z,now")
    assert "compiled but does not load" in err
    assert "undefined symbol" in err
    crash = BINDINGS.replace("return PyModule_Create", "__builtin_trap(); return PyModule_Create")
    (checkout.csrc / "bindings.cpp").write_text(crash)
    (checkout.csrc / "cpu" / "part.cpp").write_text(PART)
    assert "compiled but does not load: Python ended with code -" in fails(checkout)


@posix
def test_a_folder_that_cannot_be_made(installed):
    (installed.root / "file").write_text("")
    err = fails(installed, XLNET_FAST_CACHE=installed.root / "file" / "cache")
    assert "cannot be made or written to" in err
    assert "set XLNET_FAST_CACHE to a folder that can" in err


def test_no_sources_and_no_headers(installed, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "PACKAGE", installed.package)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(BuildError, match=r"there is no .*Python\.h; install your distribution's"):
        compiler.include_folders()
    monkeypatch.undo()
    monkeypatch.setattr(recipe, "pybind11_include", lambda: None)
    with pytest.raises(BuildError, match="pip install pybind11"):
        compiler.include_folders()
    monkeypatch.setattr(recipe, "PACKAGE", installed.package)
    shutil.rmtree(installed.csrc)
    assert recipe.cached_extension() is None
    with pytest.raises(BuildError, match="sources are not part of this installation"):
        build.build_extension()


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan])
def test_a_senseless_time_out(timeout_s):
    with pytest.raises(ArgumentError, match="must be more than 0 seconds"):
        build.build_extension(timeout_s=timeout_s)


# --- compilers that do not end -------------------------------------------------------------------


def test_the_time_out_kills_the_compilers_and_their_children(checkout, sleeper):
    cxx, file = sleeper
    began = time.monotonic()
    err = fails(checkout, "--timeout", "1.5", CXX=cxx)
    assert time.monotonic() - began < 20
    assert "stopped after 1.5 s" in err
    assert "csrc/bindings.cpp, csrc/cpu/part.cpp" in err
    assert "--timeout" in err
    assert all_gone(pids_in(file, 4))
    (log,) = checkout.root.glob("build/*/build.log")
    assert log.read_text().count("\nasleep") == 2


@posix
@proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_kills_the_compilers(checkout, sleeper, number):
    cxx, file = sleeper
    process = checkout.start(CXX=cxx)
    pids = pids_in(file, 4)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert all_gone(pids)
    assert checkout.leftovers() == []


@posix
@proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_compiler_starts_kills_it_too(sleeper, tmp_path, monkeypatch, number):
    """The signal comes when the compiler runs and its starter has not returned."""
    cxx, file = sleeper

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            if options.get("start_new_session"):
                pids_in(file, 2)
                signal.raise_signal(number)

    monkeypatch.setattr(compiler.subprocess, "Popen", Interrupted)
    before = signal.signal(number, signal.default_int_handler)
    runner = compiler.Runner(tmp_path / "log", tmp_path, 60, time.monotonic() + 60, SILENT)
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.run([compiler.Step("x", (str(cxx),))], jobs=1)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert all_gone(pids_in(file, 2))


@posix
@has_compiler
def test_when_nobody_reads_the_lines_the_folder_is_not_blamed(checkout):
    process = checkout.start()
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
    assert checkout.leftovers() == []


@posix
@proc
def test_one_failure_stops_the_others(checkout, sleeper, script):
    cxx, file = sleeper
    wait = f"while [ ! -e {file} ]; do sleep 0.05; done; exit 7"
    mixed = script("mixed", f'case "$*" in *part.cpp*) {wait};; *) exec {cxx};; esac')
    assert "csrc/cpu/part.cpp (exit code 7)" in fails(checkout, CXX=mixed)
    assert all_gone(pids_in(file, 2))
