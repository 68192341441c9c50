"""`kernels-report` as a whole: which backends take part, what is written, the exit code."""

from __future__ import annotations

import json
import os
import time

import pytest
from report_rows import cuda_row, text_of, tpu_row, triton_row

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.report import command, cuda, pallas, tpu, triton
from xlnet_fast.kernels.report.jobs import run_jobs
from xlnet_fast.kernels.report.rows import PRAISE, check
from xlnet_fast.kernels.report.tables import render

TRITON = triton_row()
CUDA = cuda_row()
TPU = tpu_row()
FAULTS = {"triton": "spills registers in 8 places", "cuda": "spills registers in 8 places"}
FAULTS |= {"pallas": "takes 8388608 bytes of VMEM"}


@pytest.fixture
def made(monkeypatch):
    """The rows that stand in for compiling, by backend, and the chips that were asked for."""
    rows, asked = {"triton": [TRITON], "cuda": [CUDA], "pallas": [TPU]}, {}

    def compile(name):
        def compile_report(archs, on_progress, **options):
            asked[name] = tuple(archs), options
            on_progress(1, 1)
            return rows[name]

        return compile_report

    for name, module in command.BACKENDS.items():
        monkeypatch.setattr(module, "compile_report", compile(name))
        known = pallas.ARCHS if name == "pallas" else (80, 89, 90)
        monkeypatch.setattr(module, "known_archs", lambda known=known: known)
    monkeypatch.setattr(cuda, "find_nvcc", lambda: None)
    monkeypatch.setattr(tpu, "require_compiler", lambda: None)
    return rows, asked


def absent(*arguments, **options):
    raise BackendUnavailable("there is no nvcc on the path")


def no_jax():
    raise BackendUnavailable("jax cannot be imported")


def test_all_backends_are_compiled_and_written(made, tmp_path, capsys):
    target = tmp_path / "report.json"
    assert command.run_report(target) == 0
    assert json.loads(target.read_text()) == [TRITON, CUDA, TPU]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    of_pallas = ("v5e",), {"dtypes": ("bf16",), "head_dims": (64,)}
    assert made[1] == {"triton": (triton.ARCHS, {}), "cuda": ((80, 90), {}), "pallas": of_pallas}
    said = " ".join(capsys.readouterr().out.split())
    for name, praise in PRAISE.items():
        assert f"{name}: 1 {praise}." in said
    assert "352" not in said
    assert "Half, 64" in said
    assert said.count(pallas.NOT_IN_QUICK) == 1


def test_each_backend_gets_the_chips_of_its_kind(made, capsys):
    assert command.run_report(None, (89,)) == 0
    assert made[1] == {"triton": ((89,), {}), "cuda": ((89,), {})}
    assert "Pallas" not in capsys.readouterr().out
    made[1].clear()
    assert command.run_report(None, ("v6e", 80, "v4")) == 0
    assert made[1] == {
        "triton": ((80,), {}), "cuda": ((80,), {}), "pallas": (("v6e", "v4"), {})
    }  # fmt: skip
    made[1].clear()
    assert command.run_report(None, ("v6e",)) == 0
    assert made[1] == {"pallas": (("v6e",), {})}
    made[1].clear()
    assert command.run_report(None, backends=("pallas",)) == 0
    assert made[1] == {"pallas": (("v4", "v5e", "v5p", "v6e", "tpu7x"), {})}
    assert pallas.NOT_IN_QUICK not in " ".join(capsys.readouterr().out.split())


def test_chips_are_found_by_name(made, monkeypatch):
    assert command.find_archs(["90", "v5e", "90"]) == (90, "v5e")
    assert command.find_archs(["v4"], ("pallas",)) == ("v4",)
    assert command.find_archs([]) == ()
    with pytest.raises(ArgumentError, match="--arch 91 is unknown here, expected one of: 80, 89"):
        command.find_archs(["90", "91"])
    with pytest.raises(ArgumentError, match="--arch 90 is unknown here, expected one of: v4, v5e"):
        command.find_archs(["90"], ("pallas",))
    with pytest.raises(ArgumentError, match="--arch v5e is unknown here, expected one of: 80"):
        command.find_archs(["v5e"], ("triton",))
    monkeypatch.setattr(tpu, "require_compiler", no_jax)
    assert command.find_archs(["90"]) == (90,)
    with pytest.raises(BackendUnavailable, match="jax cannot be imported"):
        command.find_archs(["90", "v5e"])


@pytest.mark.parametrize("name", command.BACKENDS)
def test_a_problem_of_any_is_the_exit_code(made, name, capsys):
    fault = {"vmem_bytes": 2**23, "vmem_limit_bytes": 2**22} if name == "pallas" else {}
    made[0][name] = [made[0][name][0] | (fault or {"loop_spills": 8})]
    assert command.run_report(None) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert FAULTS[name] in said
    assert PRAISE[name] not in said
    for other in set(command.BACKENDS) - {name}:
        assert command.run_report(None, backends=(other,)) == 0
    assert command.run_report(None, backends=(name,)) == 1


def test_without_nvcc_triton_goes_on_and_a_line_says_so(made, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "find_nvcc", absent)
    assert command.run_report(None) == 0
    assert set(made[1]) == {"triton", "pallas"}
    said = capsys.readouterr().out
    assert said.count("the CUDA C++ kernels are left out: there is no nvcc on the path\n") == 1


def test_without_jax_the_others_go_on_and_a_line_says_so(made, monkeypatch, capsys):
    monkeypatch.setattr(tpu, "require_compiler", no_jax)
    assert command.run_report(None) == 0
    assert set(made[1]) == {"triton", "cuda"}
    said = capsys.readouterr().out
    assert said.count("the Pallas kernels are left out: jax cannot be imported\n") == 1
    assert "head dim of 64 alone" not in said
    assert command.run_report(None, ("v5e", 80)) == 2
    assert "kernels-report: jax cannot be imported" in capsys.readouterr().out


def test_a_backend_asked_for_by_name_must_compile(made, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "compile_report", absent)
    assert command.run_report(None, backends=("cuda",)) == 2
    assert "kernels-report: there is no nvcc" in capsys.readouterr().out


def test_known_archs_are_those_of_all_that_take_part(made, monkeypatch):
    monkeypatch.setattr(cuda, "known_archs", lambda: (80, 120))
    assert command.known_archs() == (80, *pallas.ARCHS)
    assert command.known_archs(("triton",)) == (80, 89, 90)
    monkeypatch.setattr(cuda, "find_nvcc", absent)
    assert command.known_archs() == (80, 89, 90, *pallas.ARCHS)
    monkeypatch.setattr(tpu, "require_compiler", no_jax)
    assert command.known_archs() == (80, 89, 90)


def test_bad_requests_end_in_a_sentence_and_code_2(made, monkeypatch, tmp_path, capsys):
    assert command.run_report(tmp_path / "no" / "report.json", (90,)) == 2
    assert "no folder" in capsys.readouterr().out

    def fail(*arguments, **options):
        raise ArgumentError("a.cu does not compile")

    monkeypatch.setattr(cuda, "compile_report", fail)
    assert command.run_report(tmp_path / "report.json") == 2
    assert list(tmp_path.iterdir()) == []


# --- rows of TPUs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vmem_bytes": 24 * 2**20}, "VMEM, more than the 24117248 that its tile was chosen by"),
        (
            {"vmem_bytes": 14 * 2**20 + 1, "vmem_limit_bytes": 14 * 2**20},
            "takes 14680065 bytes of VMEM, more than the 14680064 that a kernel may have of this",
        ),
        (
            {"program_temporary_bytes": 432 * 2**20},
            "has 452984832 bytes of temporary memory, as much as scores: 452984832",
        ),
    ],
)
def test_check_catches_on_a_tpu(changes, words):
    limits = {"vmem_bytes": 23 * 2**20, "program_temporary_bytes": 432 * 2**20 - 1}
    assert check([TPU, tpu_row(**limits)]) == []
    (problem,) = check([TPU, tpu_row(**changes)])
    assert problem.startswith("rel_attention_forward bf16 head_dim 64 on v5e ")
    assert words in problem


def test_a_table_of_tpus_beside_the_others():
    text = text_of(render([TRITON, TPU, tpu_row(arch="tpu7x", tile=256), CUDA]))
    head, first, second = (
        next(line.split() for line in text.splitlines() if sign in line)
        for sign in ("VMEM", "v5e", "tpu7x")
    )
    assert " ".join(head).startswith("chip dtype D tile VMEM MiB MB GFLOP temporary MiB scores MiB")
    assert " ".join(first) == "v5e bf16 64 512 5.0/23.0/112.0 239 116.0 64 432 591 10"
    assert second[:4] == ["tpu7x", "bf16", "64", "256"]
    both = text_of(render([TRITON, CUDA]))
    assert all(line in text.splitlines() for line in both.splitlines())


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
