"""`kernels-report` as a whole: which backends take part, what is written, the exit code."""

from __future__ import annotations

import json

import pytest

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels import report
from xlnet_fast.kernels.cuda import report as cuda_report
from xlnet_fast.kernels.triton import report as triton_report

TRITON = {
    "kernel": "rel_attention_forward", "variant": "precomputed", "arch": 80, "dtype": "bf16",
    "head_dim": 64, "registers": 200, "spill_bytes": 0, "loop_spills": 0,
    "shared_bytes": 65536, "gemm_units": 2, "disorder": [],
}  # fmt: skip
COUNTS = dict.fromkeys((*cuda_report.COUNTED, "all"), 4)
CUDA = {
    "source": "csrc/cuda/a.cu", "kernel": "rel_attention_forward_kernel<Half, 64>", "arch": 80,
    "registers": 168, "stack_bytes": 0, "spill_bytes": 0, "loop_spills": 0,
    "product_loop_spills": 0, "max_threads": 128, "threads": 128, "shared_bytes": 0,
    "dynamic_bytes": None, "blocks": 3, "instructions": COUNTS, "loop_instructions": COUNTS,
}  # fmt: skip


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

    for name, module in report.BACKENDS.items():
        monkeypatch.setattr(module, "compile_report", compile(name))
        monkeypatch.setattr(module, "known_archs", lambda: (80, 89, 90))
    monkeypatch.setattr(cuda_report, "find_nvcc", lambda: None)
    return rows, asked


def absent(*arguments, **options):
    raise BackendUnavailable("there is no nvcc on the path")


def test_both_backends_are_compiled_and_written(made, tmp_path, capsys):
    target = tmp_path / "report.json"
    assert report.run_report(target) == 0
    assert json.loads(target.read_text()) == [
        {"backend": "triton"} | TRITON,
        {"backend": "cuda"} | CUDA,
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert made[1] == {"triton": triton_report.ARCHS, "cuda": (80, 90)}
    said = capsys.readouterr().out
    assert f"triton: 1 {triton_report.PRAISE}." in said
    assert f"cuda: 1 {cuda_report.PRAISE}." in said
    assert "352" not in said
    assert "Half, 64" in said
    assert report.run_report(None, (89,)) == 0
    assert made[1] == {"triton": (89,), "cuda": (89,)}


@pytest.mark.parametrize("name", report.BACKENDS)
def test_a_problem_of_either_is_the_exit_code(made, name, capsys):
    made[0][name] = [made[0][name][0] | {"loop_spills": 8}]
    assert report.run_report(None) == 1
    assert "spills registers in 8 places" in " ".join(capsys.readouterr().out.split())
    (other,) = set(report.BACKENDS) - {name}
    assert report.run_report(None, backends=(other,)) == 0
    assert report.run_report(None, backends=(name,)) == 1


def test_without_nvcc_triton_goes_on_and_a_line_says_so(made, monkeypatch, capsys):
    monkeypatch.setattr(cuda_report, "find_nvcc", absent)
    assert report.run_report(None) == 0
    assert set(made[1]) == {"triton"}
    said = capsys.readouterr().out
    assert said.count("the CUDA C++ kernels are left out: there is no nvcc on the path\n") == 1


def test_a_backend_asked_for_by_name_must_compile(made, monkeypatch, capsys):
    monkeypatch.setattr(cuda_report, "compile_report", absent)
    assert report.run_report(None, backends=("cuda",)) == 2
    assert "kernels-report: there is no nvcc" in capsys.readouterr().out


def test_known_archs_are_those_of_all_that_take_part(made, monkeypatch):
    monkeypatch.setattr(cuda_report, "known_archs", lambda: (80, 120))
    assert report.known_archs() == (80,)
    assert report.known_archs(("triton",)) == (80, 89, 90)
    monkeypatch.setattr(cuda_report, "find_nvcc", absent)
    assert report.known_archs() == (80, 89, 90)


def test_bad_requests_end_in_a_sentence_and_code_2(made, monkeypatch, tmp_path, capsys):
    assert report.run_report(tmp_path / "no" / "report.json", (90,)) == 2
    assert "no folder" in capsys.readouterr().out

    def fail(*arguments, **options):
        raise ArgumentError("a.cu does not compile")

    monkeypatch.setattr(cuda_report, "compile_report", fail)
    assert report.run_report(tmp_path / "report.json") == 2
    assert list(tmp_path.iterdir()) == []
