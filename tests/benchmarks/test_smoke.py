"""The smoke stage: every op and backend against float64, and what it compiles is what is timed."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks.cases.rel_attention import FORWARD, FORWARD_BACKWARD, RelAttentionCase, make_inputs
from benchmarks.gpu import smoke, smoke_problems
from benchmarks.gpu.compilations import recording
from benchmarks.gpu.smoke_problems import SIZES, problems, verdict
from benchmarks.harness.stages import Evidence
from benchmarks.providers.rel_attention import named_provider, prepare
from xlnet_fast.ops import _dispatch


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_op_dtype_pass_and_size_is_a_problem(device):
    made = problems(device)
    assert len({problem.label for problem in made}) == len(made)
    found = {(p.op, p.dtype, p.pass_name, p.size) for p in made}
    for op in _dispatch.OPS:
        passes = (FORWARD,) if op == "concat_memory" else (FORWARD, FORWARD_BACKWARD)
        for pass_name in passes:
            assert {(op, d, pass_name, s) for d in ("bf16", "fp16") for s in SIZES} <= found
    assert [p.size for p in made].index("middle") > len(made) // 3


def named(op, pass_name=FORWARD_BACKWARD, dtype="bf16", features=""):
    return next(
        p
        for p in problems("cpu")
        if (p.op, p.pass_name, p.dtype) == (op, pass_name, dtype) and features in p.features
    )


@pytest.mark.parametrize("op", ["rel_attention", "two_stream_attention", "masked_softmax"])
def test_what_is_a_little_wrong_fails_and_says_where(op):
    problem = named(op)
    right = verdict(problem, "sdpa")
    assert right["outcome"] == "passed"
    assert 0 < right["error"] <= right["bound"]
    assert right["tensors"] > 2

    def wrong(backend, dtype):
        results = [x.detach().clone() for x in problem.compute(backend, dtype)]
        if backend == "sdpa":
            results[1].view(-1)[3] += 10 * right["bound"]
        return results

    answer = verdict(replace(problem, compute=wrong), "sdpa")
    assert answer["outcome"] == "failed"
    assert answer["error"] > answer["bound"]
    assert answer["reason"] == f"outside: {problem.names[1]}" == f"outside: {answer['tensor']}"


def test_a_copy_must_be_exact():
    problem = next(p for p in problems("cpu") if p.op == "concat_memory")
    assert verdict(problem, "sdpa")["outcome"] == "passed"

    def wrong(backend, dtype):
        results = [x.clone() for x in problem.compute(backend, dtype)]
        if backend == "sdpa":
            results[0][0, 0, 0] += 1e-2
        return results

    assert verdict(replace(problem, compute=wrong), "sdpa")["outcome"] == "failed"


def test_a_backend_that_cannot_run_here_is_told_so():
    answer = verdict(named("rel_attention"), "triton")
    assert answer["outcome"] == "unavailable"
    assert "triton" in answer["reason"]


def test_on_a_cpu_it_runs_for_real(tmp_path, capfd):
    out = tmp_path / "evidence.jsonl"
    arguments = ["--device", "cpu", "--backend", "sdpa", "--seconds", "60", "--out", str(out)]
    assert smoke.main([*arguments, "--only", "masked_softmax bf16 forward small"]) == 0
    (row,) = Evidence(out).read("smoke")
    assert (row["backend"], row["outcome"]) == ("sdpa", "passed"), row
    assert row["problem"] == "masked_softmax bf16 forward small padding"
    assert "passed" in capfd.readouterr().out


def test_a_red_problem_makes_a_red_stage(tmp_path, monkeypatch):
    def supervise(team, tasks, record, left_s):
        for task in tasks:
            record(task, {"outcome": "failed" if "fp16" in task else "passed", "error": 1.0})

    monkeypatch.setattr(smoke, "supervise", supervise)
    out = tmp_path / "evidence.jsonl"
    arguments = ["--device", "cpu", "--out", str(out), "--only"]
    assert smoke.main([*arguments, "masked_softmax bf16"]) == 0
    assert smoke.main([*arguments, "masked_softmax"]) == 1
    assert smoke.main([*arguments, "no such problem"]) == 2
    rows = Evidence(out).read()
    assert {row["backend"] for row in rows} == {"cpu", "sdpa"}
    assert Counter(row["outcome"] for row in rows)["failed"] == 2 * 4


@pytest.mark.parametrize("seconds", ["0", "-1"])
def test_seconds_must_be_positive(seconds, capsys):
    with pytest.raises(SystemExit) as caught:
        smoke.main(["--device", "cpu", "--seconds", seconds])
    assert caught.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert smoke.main(["--out", str(tmp_path / "evidence.jsonl")]) == 2
    assert "no GPU" in capsys.readouterr().err


# --- what is compiled before anything is timed ----------------------------------------------------


@pytest.fixture
def triton_on_cpu(monkeypatch):
    """Backend triton takes CPU tensors, and its launches are recorded; yields their keys."""
    pytest.importorskip("triton")
    capabilities = tuple(
        replace(c, devices=("cpu",)) if c.name == "triton" else c for c in _dispatch.CAPABILITIES
    )
    monkeypatch.setattr(_dispatch, "CAPABILITIES", capabilities)
    # As many rows and scores as on a GPU decide which kernel it is; heads do not.
    for table in (smoke_problems._ROWS, smoke_problems._SCORES):
        for size in SIZES:
            monkeypatch.setitem(table, ("cpu", size), table["cuda", size])
    with recording() as keys:
        yield keys


def keys_of(keys, problem):
    keys.clear()
    problem.compute("triton", {"bf16": torch.bfloat16, "fp16": torch.float16}[problem.dtype])
    return set(keys)


def test_each_kernel_is_compiled_once_and_all_are(triton_on_cpu):
    keys, compiled = triton_on_cpu, set()
    for problem in smoke.to_compile("cpu"):
        if problem.dtype == "bf16":
            mine = keys_of(keys, problem)
            assert mine
            assert not mine & compiled, problem.label
            compiled |= mine
    for problem in problems("cpu"):
        if problem.dtype == "bf16":
            assert keys_of(keys, problem) <= compiled, problem.label


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("length", [512, 2048])
def test_the_headline_times_find_their_kernels_compiled(length, dropout, triton_on_cpu):
    keys, compiled = triton_on_cpu, set()
    for problem in smoke.to_compile("cpu"):
        if problem.dtype == "bf16" and problem.op == "rel_attention":
            compiled |= keys_of(keys, problem)
    for plain in (False, True):
        if plain and dropout:
            continue
        case = RelAttentionCase(
            2, length, 0, 2, 64, "bf16", "cpu", FORWARD_BACKWARD,
            padding=not plain, segments=not plain, dropout=dropout,
        )  # fmt: skip
        keys.clear()
        prepare(named_provider("triton"), case, make_inputs(case)).run()
        assert len(keys) == 3
        assert set(keys) <= compiled, case.label
