"""The sanitizer's workload on the CPU, and what the command says where something is missing."""

import subprocess

import pytest
import torch

from benchmarks.gpu import sanitize
from benchmarks.micro.gpu_kernels import DTYPES, Workload
from xlnet_fast.ops import _dispatch


@pytest.fixture(scope="module")
def cases():
    return Workload(torch.device("cpu"), "sdpa").cases()


def test_every_op_that_triton_has_is_in_the_workload(cases):
    (triton,) = (each for each in _dispatch.CAPABILITIES if each.name == "triton")
    names = {name.split()[0] for name in cases}
    covered = {"two_stream": "two_stream_attention"}
    assert {covered.get(name, name) for name in names} >= set(triton.ops) - {"concat_memory"}
    for dtype in DTYPES:
        assert any(str(dtype).removeprefix("torch.") in name for name in cases)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_workload_is_made_of_valid_calls(cases, dtype):
    ran = [run() for name, run in cases.items() if dtype in name]
    assert len(ran) == 12


def test_a_result_that_is_not_finite_is_an_error(cases):
    with pytest.raises(ArithmeticError, match=r"shape \(2,\) is not finite"):
        Workload._look([torch.tensor([1.0, float("nan")])])


def test_without_a_gpu_or_the_sanitizer_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sanitize.main([]) == 2
    assert "there is no GPU here" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sanitize, "sanitizer_path", lambda: None)
    assert sanitize.main([]) == 2
    assert "compute-sanitizer is neither on the path" in capsys.readouterr().err


def test_the_sanitizer_is_found_beside_cuda(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    found = tmp_path / "cuda" / "bin" / "compute-sanitizer"
    found.parent.mkdir(parents=True)
    found.write_text("#!/bin/sh\n")
    found.chmod(0o755)
    assert sanitize.sanitizer_path() == str(found)


@pytest.mark.parametrize(
    ("code", "message"),
    [(0, "memcheck: clean"), (99, "memcheck found errors"), (1, "ended with exit code 1")],
)
def test_what_a_tool_found_decides_the_exit_code(monkeypatch, capsys, code, message):
    calls = []

    def run(command, **options):
        calls.append((command, options["env"]["PYTORCH_NO_CUDA_MEMORY_CACHING"]))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sanitize, "sanitizer_path", lambda: "/tools/compute-sanitizer")
    monkeypatch.setattr(sanitize.subprocess, "run", run)
    assert sanitize.main(["--tool", "memcheck"]) == (1 if code else 0)
    assert message in capsys.readouterr().out
    assert [command[-1] for command, _ in calls] == ["triton", "cuda"]
    for command, caching in calls:
        assert command[:3] == ["/tools/compute-sanitizer", "--tool", "memcheck"]
        assert command[-3:-1] == ["benchmarks.micro.gpu_kernels", "--backend"]
        assert caching == "1"


def test_a_tool_that_does_not_finish_is_an_error(monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(sanitize.subprocess, "run", run)
    found = sanitize.run_tool("tool", "racecheck", "cuda", 60.0)
    assert found == "racecheck was not done after 60 s"
