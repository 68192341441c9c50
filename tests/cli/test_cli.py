"""The command line: what it prints, how it fails, and that it fails in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import refused, run

import xlnet_fast
from xlnet_fast import cli, info
from xlnet_fast.builder import build
from xlnet_fast.errors import BuildError
from xlnet_fast.kernels.report import command as report

ROOT = Path(__file__).resolve().parents[2]


# --- the whole -----------------------------------------------------------------------------------


COMMANDS = [
    "info", "build", "check", "bench", "kernels-report", "qualify", "pretrain", "finetune",
    "evaluate", "perplexity", "generate", "predict", "serve", "export", "convert",
]  # fmt: skip
GROUPS = ["train", "deploy"]


def test_the_commands_are_these():
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert names == COMMANDS
    assert [group.name for group in cli.app.registered_groups] == GROUPS


def test_no_command_prints_the_help():
    result = run()
    assert result.exit_code == 0
    for name in (*COMMANDS, *GROUPS):
        assert name in result.stdout


def test_help_and_version_need_no_torch():
    code = (
        "import sys\n"
        "from xlnet_fast import cli\n"
        "for word in ('--help', '--version'):\n"
        "    assert cli.app([word], standalone_mode=False) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"xlnet-fast {xlnet_fast.__version__}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "no such command 'nonsense'"),
        (["--nonsense"], "no such option: --nonsense"),
        (["info", "--nonsense"], "no such option: --nonsense"),
        (["info", "more"], "unexpected extra argument"),
        (["check", "a", "b"], "unexpected extra argument"),
        (["bench", "--preset", "fast"], "'fast' is not one of 'quick', 'full'"),
        (["bench", "--preset"], "requires an argument"),
        (["build", "--timeout", "soon"], "invalid value for '--timeout'"),
        (["build", "--timeout", "0"], "the time-out must be more than 0 seconds, got 0"),
        (["build", "--timeout=-3"], "the time-out must be more than 0 seconds, got -3"),
        (["kernels-report", "--arch", "new"], "--arch new is unknown here, expected one of: 80"),
    ],
)
def test_wrong_arguments(arguments, words):
    assert words in refused(run(*arguments))


def test_a_subprocess_ends_with_the_same_code_and_no_traceback():
    command = [sys.executable, "-m", "xlnet_fast", "kernels-report", "--json", "/no/such/folder/x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2  # a number that scripts rely on
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [("pretrain", None, "1"), ("pretrain", "0", "0"), ("bench", None, None)],
)
def test_huge_pages_are_asked_for(command, before, after, monkeypatch):
    """Before anything imports torch; a benchmark takes the memory that a program gets."""
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", before or "")  # so that it is restored
    if before is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    found = []
    monkeypatch.setattr(
        cli, "app", lambda prog_name: found.append(os.environ.get("THP_MEM_ALLOC_ENABLE"))
    )
    monkeypatch.setattr(sys, "argv", ["xlnet-fast", command])
    cli.main()
    assert found == [after]


def test_a_fault_of_the_package_is_not_dressed_up(monkeypatch):
    monkeypatch.setattr(info, "gather", lambda: 1 / 0)
    result = run("info")
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


def test_an_interrupt_gives_130(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "gather", interrupted)
    assert run("info").exit_code == 130


# --- build ---------------------------------------------------------------------------------------


BUILD_INFO = {
    "compiler": "gcc 1",
    "flags": ["-a", "-b"],
    "isa_compiled": ["x"],
    "isa_used": "y",
    "attention_isa": ["x", "y"],
    "thread_runtime": "openmp",
    "cuda_archs": ["80", "90a"],
}


@pytest.fixture
def handler():
    """The handler of SIGTERM that was there before is there again afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("compiled", [True, False])
def test_build_passes_its_options_on_and_tells_what_it_found(monkeypatch, handler, compiled):
    seen = []

    def fake(force, timeout_s, say):
        seen.append((force, timeout_s))
        say("working")
        return build.Built(Path("/place/_C.so"), BUILD_INFO, compiled, 12.3)

    monkeypatch.setattr(build, "build_extension", fake)
    result = run("build", "--force", "--timeout", "7.5")
    assert result.exit_code == 0
    assert run("build").exit_code == 0
    assert seen == [(True, 7.5), (False, 1800.0)]
    how = "built in 12 s" if compiled else "there already; --force builds it anew"
    assert result.stdout.splitlines() == [
        "working",
        f"/place/_C.so: {how}",
        "compiler: gcc 1, flags: -a -b",
        "attention variants on this CPU: x, y",
        "CUDA kernels: sm_80, sm_90a",
    ]


def test_a_failed_build_gives_1_and_keeps_its_lines(monkeypatch, handler):
    def fake(*arguments, **options):
        raise BuildError("the compiler failed; it ended with\n    a.cpp:1: error")

    monkeypatch.setattr(build, "build_extension", fake)
    result = run("build")
    assert result.exit_code == 1
    assert result.stderr == "error: the compiler failed; it ended with\n    a.cpp:1: error\n"


# --- bench and kernels-report --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "/no/such/text"], "does not exist"),
        (["--text", ROOT], "is a directory"),
        (["--device", "toaster"], "device must be cpu, cuda or cuda:N, got 'toaster'"),
        (["--dtype", "fp8"], "dtype must be one of"),
        (["--out", Path(__file__) / "out"], "cannot make the folder"),
    ],
)
def test_bench_refuses_bad_input(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(run("bench", *arguments))


@pytest.mark.parametrize("code", [0, 1, 130])
def test_bench_passes_arguments_and_the_exit_code_on(code, monkeypatch):
    seen = []
    fake = SimpleNamespace(run_bench=lambda *given: seen.append(given) or code)
    monkeypatch.setattr(cli, "_benchmarks", lambda: fake)
    options = ["--preset", "full", "--text", "t", "--device", "cpu", "--dtype", "bf16"]
    assert run("bench", *options, "--out", "o").exit_code == code
    assert seen == [("full", None, "t", "cpu", "bf16", "o")]


def test_bench_without_the_benchmarks(monkeypatch, tmp_path):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "xlnet_fast" / "cli" / "__init__.py"))
    assert "benchmarks are not part of this installation" in refused(run("bench"))


def test_kernels_report_passes_arguments_and_the_exit_code_on(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(report, "run_report", lambda *given: seen.append(given) or 1)
    file = tmp_path / "rows.json"
    result = run("kernels-report", "--json", file, "--arch", "90", "--arch", "80", "--arch", "90")
    assert result.exit_code == 1
    assert run("kernels-report", "--backend", "triton").exit_code == 1
    assert seen == [(file, (90, 80), ()), (None, (), ("triton",))]


def test_kernels_report_writes_tiles_in_place_of_a_report(monkeypatch):
    seen = []
    monkeypatch.setattr(report, "write_tiles", lambda *given: seen.append(given) or 2)
    monkeypatch.setattr(report, "run_report", lambda *given: pytest.fail("a report was made"))
    assert run("kernels-report", "--write-tiles", "--arch", "80", "--arch", "90").exit_code == 2
    assert seen == [((80, 90),)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "42"], "--arch 42 is unknown here, expected one of: 80"),
        (["--write-tiles", "--backend", "cuda"], "--write-tiles goes with --arch alone"),
        (["--write-tiles", "--backend", "pallas"], "--write-tiles goes with --arch alone"),
        (["--write-tiles", "--arch", "v5e"], "--arch v5e is unknown here, expected one of: 80"),
        (["--write-tiles", "--json", "rows.json"], "--write-tiles goes with --arch alone"),
        (["--backend", "cpu"], "invalid value for '--backend'"),
        (["--json", "/no/such/folder/rows.json"], "the folder /no/such/folder does not exist"),
        (["--json", ROOT], "is a folder; give the name of a file"),
        (["--json", "/proc/rows.json"], "--json /proc/rows.json cannot be written to"),
    ],
)
def test_kernels_report_refuses_bad_input(arguments, words):
    assert words in refused(run("kernels-report", *arguments))
