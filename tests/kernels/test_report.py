"""`kernels-report` as a whole: which backends take part, what is written, the exit code."""

from __future__ import annotations

import json
import os
import time

import pytest
from report_rows import cuda_row, triton_row

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.report import command, cuda, triton
from xlnet_fast.kernels.report.jobs import run_jobs
from xlnet_fast.kernels.report.rows import PRAISE

TRITON = triton_row()
CUDA = cuda_row()


@pytest.fixture
def made(monkeypatch):
    """The rows that stand in for compiling, by backend, and the chips that were asked for."""
    rows, asked = {"triton": [TRITON], "cuda": [CUDA]}, {}

    def compile(name):
        def compile_report(archs, on_progress):
            asked[name] = tuple(archs)
            on_progress(1, 1)
            return rows[name]

        return compile_report

    for name, module in command.BACKENDS.items():
        monkeypatch.setattr(module, "compile_report", compile(name))
        monkeypatch.setattr(module, "known_archs", lambda: (80, 89, 90))
    monkeypatch.setattr(cuda, "find_nvcc", lambda: None)
    return rows, asked


def absent(*arguments, **options):
    raise BackendUnavailable("there is no nvcc on the path")


def test_both_backends_are_compiled_and_written(made, tmp_path, capsys):
    target = tmp_path / "report.json"
    assert command.run_report(target) == 0
    assert json.loads(target.read_text()) == [TRITON, CUDA]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert made[1] == {"triton": triton.ARCHS, "cuda": (80, 90)}
    said = " ".join(capsys.readouterr().out.split())
    assert f"triton: 1 {PRAISE['triton']}." in said
    assert f"cuda: 1 {PRAISE['cuda']}." in said
    assert "352" not in said
    assert "Half, 64" in said
    assert command.run_report(None, (89,)) == 0
    assert made[1] == {"triton": (89,), "cuda": (89,)}


@pytest.mark.parametrize("name", command.BACKENDS)
def test_a_problem_of_either_is_the_exit_code(made, name, capsys):
    made[0][name] = [made[0][name][0] | {"loop_spills": 8}]
    assert command.run_report(None) == 1
    assert "spills registers in 8 places" in " ".join(capsys.readouterr().out.split())
    (other,) = set(command.BACKENDS) - {name}
    assert command.run_report(None, backends=(other,)) == 0
    assert command.run_report(None, backends=(name,)) == 1


def test_without_nvcc_triton_goes_on_and_a_line_says_so(made, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "find_nvcc", absent)
    assert command.run_report(None) == 0
    assert set(made[1]) == {"triton"}
    said = capsys.readouterr().out
    assert said.count("the CUDA C++ kernels are left out: there is no nvcc on the path\n") == 1


def test_a_backend_asked_for_by_name_must_compile(made, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "compile_report", absent)
    assert command.run_report(None, backends=("cuda",)) == 2
    assert "kernels-report: there is no nvcc" in capsys.readouterr().out


def test_known_archs_are_those_of_all_that_take_part(made, monkeypatch):
    monkeypatch.setattr(cuda, "known_archs", lambda: (80, 120))
    assert command.known_archs() == (80,)
    assert command.known_archs(("triton",)) == (80, 89, 90)
    monkeypatch.setattr(cuda, "find_nvcc", absent)
    assert command.known_archs() == (80, 89, 90)


def test_bad_requests_end_in_a_sentence_and_code_2(made, monkeypatch, tmp_path, capsys):
    assert command.run_report(tmp_path / "no" / "report.json", (90,)) == 2
    assert "no folder" in capsys.readouterr().out

    def fail(*arguments, **options):
        raise ArgumentError("a.cu does not compile")

    monkeypatch.setattr(cuda, "compile_report", fail)
    assert command.run_report(tmp_path / "report.json") == 2
    assert list(tmp_path.iterdir()) == []


# --- jobs -----------------------------------------------------------------------------------------


def test_a_process_that_is_killed_is_told():
    with pytest.raises(BackendUnavailable, match="a compiling process ended: it was killed, or"):
        run_jobs(os._exit, (1, 2), 2, None)


def test_the_first_failure_is_raised_and_what_waits_is_not_begun():
    begun = []

    def compile(job):
        begun.append(job)
        time.sleep(0.1)
        raise ArgumentError(f"job {job} does not compile")

    with pytest.raises(ArgumentError, match="job 0 does not compile"):
        run_jobs(compile, range(100), 2, None, threads=True)
    assert len(begun) < 50
