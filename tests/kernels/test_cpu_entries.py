"""Backend ``cpu`` called past the public ops: threads, memory, what is asked for, and misuse."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import attention_checks as checks
import forked
import pytest
import torch
from cpu_kernels import ISAS, each_isa, each_kernel, isa, needs_kernels
from hf_oracle import Problem, assert_same, make_problem, run
from two_sources import apart, kernel_operands

from xlnet_fast import _extension, ops
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.cpu import instruction_sets
from xlnet_fast.kernels.cpu import rel_attention as cpu
from xlnet_fast.kernels.cpu.addresses import Addresses

__all__ = ["isa"]  # a fixture
pytestmark = needs_kernels
ROOT = Path(__file__).resolve().parents[2]

attend = functools.partial(ops.rel_attention, backend="cpu")

# --- threads --------------------------------------------------------------------------------------


@pytest.fixture
def set_threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


THREADED: dict[str, dict[str, Any]] = {
    "tiles of one head": {"batch": 1, "heads": 1, "queries": 230, "memory": 20, "dim": 16},
    "many heads": {"batch": 3, "heads": 5, "queries": 65, "memory": 17, "dim": 16},
    "groups": {"batch": 4, "heads": 2, "queries": 70, "memory": 3, "dim": 16, "groups": 2},
}


@each_kernel
@pytest.mark.parametrize("case", THREADED)
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_the_number_of_threads_changes_no_bit(case, dropout_p, isa, dtype, set_threads):
    problem = make_problem(mask="left", segments=2, **THREADED[case]).to(dtype)
    dropout = {"dropout_p": dropout_p, "seed": torch.tensor(3)} if dropout_p else {}
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(run(attend, problem, **dropout))
    for result in results[1:]:
        assert_same(result, results[0], 0.0)


@each_isa
def test_calls_at_the_same_time(isa):
    """Two Python threads in the kernels, which hold no lock of Python's."""
    problem = make_problem(batch=3, heads=4, queries=65, memory=17, dim=16).to(torch.float32)
    expected = run(attend, problem)
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda _: run(attend, problem), range(8)):
            assert_same(result, expected, 0.0)


def child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_as_many_threads_as_torch_is_told():
    """In a process of its own, torch not having started any: none for little work, three for much.

    The kernels take torch's pool: its threads stay, and torch's next operator starts no others.
    """
    done = child("""
        import os, torch
        from xlnet_fast import ops, _extension
        assert _extension.require().thread_runtime() == "openmp"
        def threads():
            return len(os.listdir("/proc/self/task"))
        def attend(length):
            q = torch.randn(2, length, 2, 16)
            ops.rel_attention(q, q, q, torch.randn(1, 2 * length, 2, 16), torch.zeros(2, 16),
                              torch.zeros(2, 16), backend="cpu")
        torch.set_num_threads(3)
        x = torch.randn(8)
        before = threads()
        attend(4)
        print(threads() - before)
        attend(300)
        print(threads() - before)
        torch.zeros(3_000_000).add_(1)
        print(threads() - before)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "2", "2"]


@each_isa
def test_threads_of_its_own_where_there_is_no_openmp(isa):
    """Loaded by a Python without torch: the same bits, from std::thread."""
    done = child(
        """
        import array, importlib.util, sys
        spec = importlib.util.spec_from_file_location("xlnet_fast._C", sys.argv[1])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert "torch" not in sys.modules
        assert module.thread_runtime() == "std::thread"
        B, I, N, D = 2, 150, 3, 8
        def floats(count, number):
            return array.array("f", (((i * 37 + number) % 101 - 50) / 50 for i in range(count)))
        def view(x, *strides):
            return (x.buffer_info()[0], *strides)
        row, element = N * D, I * N * D
        q, k, v, d_out = (floats(B * element, number) for number in range(4))
        r, w = floats(2 * element, 5), floats(N * D, 6)
        results = []
        for threads in (1, 2, 3):
            out, d_q, d_k, d_v = (array.array("f", bytes(4 * B * element)) for _ in range(4))
            d_r, d_w = array.array("f", bytes(8 * element)), array.array("f", bytes(4 * N * D))
            keys = dict(
                dtype=0, batch=B, heads=N, head_dim=D, keys=I, memory=0, groups=1, table=2 * I,
                k=view(k, element, row, D), v=view(v, element, row, D),
                r=view(r, 2 * element, row, D), r_w_bias=view(w, D), r_r_bias=view(w, D), scale=0.3,
            )
            stream = dict(
                rows=I, table=I, q=view(q, element, row, D), out=view(out, element, row, D)
            )
            module.rel_attention_forward(keys, [stream], threads, sys.argv[2])
            del stream["out"]
            stream |= dict(d_out=view(d_out, element, row, D), d_q=view(d_q, element, row, D))
            gradients = dict(
                k=view(d_k, element, row, D), v=view(d_v, element, row, D),
                r=view(d_r, 2 * element, row, D), r_w_bias=d_w.buffer_info()[0],
            )
            module.rel_attention_backward(keys, [stream], gradients, threads, sys.argv[2])
            results.append([x.tobytes() for x in (out, d_q, d_k, d_v, d_r, d_w)])
            assert all(any(x) for x in (out, d_q, d_k, d_v, d_r, d_w))
        assert results[0] == results[1] == results[2]
        print("same")
        """.replace("sys.argv[1]", repr(_extension.path())).replace("sys.argv[2]", repr(isa))
    )
    assert done.stdout == "same\n", done.stderr


# --- what is asked for ----------------------------------------------------------------------------

SIZES: dict[str, Any] = {"queries": 50, "dim": 20}


@each_kernel
@pytest.mark.parametrize("name", checks.GRADIENTS)
def test_one_gradient_alone_is_the_same(name, isa, dtype):
    checks.check_one_gradient_alone(attend, cpu, name, dtype, **SIZES)


@each_isa
def test_nothing_asked_for(isa):
    problem = make_problem(segments=2, **SIZES).to(torch.float32)
    assert checks.gradients(cpu, problem, set()) == {}


# --- empty ----------------------------------------------------------------------------------------


EMPTY: dict[str, dict[str, Any]] = {
    "no batch": {"batch": 0},
    "no current keys, no rows": {"queries": 0, "memory": 5},
    "no keys": {"queries": 0, "memory": 0},
}


@each_kernel
@pytest.mark.parametrize("empty", EMPTY)
def test_empty(empty, isa, dtype):
    problem = make_problem(**{"segments": 2, **SIZES, **EMPTY[empty]}).to(dtype)
    for name, value in run(attend, problem).items():
        assert (value == 0).all(), name


@each_kernel
def test_no_rows(isa, dtype):
    problem = make_problem(segments=2, targets=3, **SIZES).to(dtype)
    options = {name: problem.options[name][:, :0] for name in ("positions", "segments_q")}
    q = problem.operands["q"][:, :0]
    result = run(attend, Problem({**problem.operands, "q": q}, {**problem.options, **options}))
    assert result["out"].shape == (4, 0, 2, 20)
    for name, value in result.items():
        assert (value == 0).all(), name


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["content", "uni", "bits", "left"])
@pytest.mark.parametrize("targets", [None, 96])
def test_no_tensor_larger_than_an_operand(mask, targets):
    problem = make_problem(
        batch=2, queries=768, memory=256, dim=2, mask=mask, segments=2, targets=targets
    ).to(torch.float32)
    largest, queries = checks.both_passes(cpu, problem)
    tensors = (
        *problem.operands.values(),
        queries.mask.bits,
        queries.mask.rank_k,
        queries.positions,
    )
    operand = max(t.nbytes for t in tensors if t is not None)
    assert largest.nbytes <= operand, largest.maker


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads VmHWM")
def test_memory_of_the_kernels_grows_with_the_keys_not_their_square(tmp_path):
    """4096 rows, 4096 keys, 4 heads: the scores would be 256 MiB."""
    process = forked.process(tell_how_memory_grows, tmp_path / "grown")
    process.start()
    process.join()
    assert process.exitcode == 0
    assert float((tmp_path / "grown").read_text()) < 64


def tell_how_memory_grows(file: Path) -> None:
    def attend(length: int) -> float:
        x = [torch.randn(1, length, 4, 4, requires_grad=True) for _ in range(3)]
        r = torch.randn(1, 2 * length, 4, 4, requires_grad=True)
        bias = torch.zeros(4, 4)
        ops.rel_attention(*x, r, bias, bias, backend="cpu").sum().backward()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    before_mib = attend(64)
    file.write_text(str(attend(4096) - before_mib))


# --- misuse ---------------------------------------------------------------------------------------


def call_both(**changes: Any) -> None:
    """Forward and backward entries with some of the operands replaced."""
    problem = apart(make_problem(mask="left", segments=2)).to(torch.float32)
    keys, queries = kernel_operands(problem)
    of_queries = {name: changes.pop(name) for name in list(changes) if hasattr(queries, name)}
    queries = replace(queries, **of_queries)
    keys = replace(keys, **changes)
    cpu.rel_attention_forward(keys, [queries], [torch.zeros(4, 5, 2, 4)], [torch.zeros(0)])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": torch.zeros(4, 5, 2, 4).double()}, ArgumentError, "takes float32, bfloat16 and flo"),
        ({"q": torch.zeros(4, 5, 2, 4).int()}, ArgumentError, "not torch.int32"),
        ({"k": torch.zeros(4, 5, 2, 4).bfloat16()}, ArgumentError, "k is torch.bfloat16 on cpu, e"),
        ({"r": torch.zeros(1, 13, 2, 4, device="meta")}, ArgumentError, "r is .* on meta, expect"),
        ({"q": torch.zeros(4, 5, 2, 4).half()}, ArgumentError, "k is torch.float32 .* torch.float"),
        ({"k": torch.zeros(4, 5, 2, 3)}, ShapeError, r"k has shape \(4, 5, 2, 3\), expected"),
        ({"v": torch.zeros(3, 5, 2, 4)}, ShapeError, r"v has shape \(3, 5, 2, 4\), expected"),
        ({"k_memory": torch.zeros(4, 3, 1, 4)}, ShapeError, "k_memory has shape"),
        ({"r": torch.zeros(1, 13, 4)}, ShapeError, r"r has shape \(1, 13, 4\), expected"),
        ({"r": torch.zeros(3, 13, 2, 4)}, ShapeError, "groups of r, 3, must divide the batch, 4"),
        ({"r_w_bias": torch.zeros(4, 2)}, ShapeError, r"r_w_bias has shape \(4, 2\), expected"),
        ({"seg_embed": torch.zeros(2, 4)}, ShapeError, r"seg_embed has shape \(2, 4\), expected"),
        ({"v": torch.zeros(4, 4, 2, 4)}, ShapeError, r"v has shape \(4, 4, 2, 4\), expected"),
        ({"v_memory": torch.zeros(4, 2, 2, 4)}, ShapeError, "v_memory has shape"),
        ({"v_memory": None}, ArgumentError, "must be given together"),
        ({"memory_length": 2}, ShapeError, "memory_length is 2, expected 3 to 8"),
        ({"memory_length": 9}, ShapeError, "memory_length is 9, expected 3 to 8"),
        ({"positions": torch.zeros(4, 4)}, ShapeError, r"positions has shape \(4, 4\)"),
        ({"dropout_p": 0.5}, ArgumentError, "needs the seed of every stream"),
    ],
)
def test_wrong_operands_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        call_both(**changes)


def test_right_operands_are_not_refused():
    call_both()


def test_outputs_and_gradients_of_another_shape_are_refused():
    keys, queries = kernel_operands(make_problem().to(torch.float32))
    none, short = torch.zeros(0), torch.zeros(4, 4, 2, 4)
    with pytest.raises(ShapeError, match=r"out has shape \(4, 4, 2, 4\), expected \(4, 5, 2, 4\)"):
        cpu.rel_attention_forward(keys, [queries], [short], [none])
    right, nothing = torch.zeros(4, 5, 2, 4), [None] * 9
    for grad_out, grad_q, message in ((short, right, "grad_out"), (right, short, "a gradient")):
        with pytest.raises(ShapeError, match=f"{message} has shape"):
            cpu.rel_attention_backward(
                keys, [queries], [none], [none], [grad_out], [grad_q, *nothing], True
            )


@pytest.mark.parametrize(
    ("isa", "threads", "fields", "message"),
    [
        ("sse9", 1, {}, "isa must be one of auto, baseline.*, got sse9"),
        ("auto", 0, {}, "threads must be at least 1, got 0"),
        ("auto", 1, {"groups": 3}, "groups must divide the batch"),
        ("auto", 1, {"head_dim": 0}, "must be positive"),
        ("auto", 1, {"apart": 9}, "0 <= apart <= memory <= keys"),
        ("auto", 1, {"r": None}, "r, r_w_bias and r_r_bias must not be null"),
        ("auto", 1, {"misspelt": 1}, "a field has no such name"),
    ],
)
def test_the_compiled_entry_refuses_what_no_tensor_can_be(isa, threads, fields, message):
    keys, queries = kernel_operands(make_problem().to(torch.float32))
    alive = Addresses()
    operands = cpu.operands_of(keys, [queries])
    shared, (stream,) = cpu.PreparedCall(keys, [queries]).arguments(*operands, alive)
    stream["out"] = alive.output(torch.zeros(4, 5, 2, 4))
    with pytest.raises(ValueError, match=message):
        _extension.require().rel_attention_forward({**shared, **fields}, [stream], threads, isa)


def test_an_unknown_instruction_set():
    message = "'avx9' is not one of auto, baseline"
    with pytest.raises(ArgumentError, match=message), instruction_sets.using("avx9"):
        raise AssertionError("it must not come here")


@pytest.fixture
def set_environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the variable as if no kernel had run before."""
    monkeypatch.setattr(instruction_sets, "_chosen", None)
    return functools.partial(monkeypatch.setenv, instruction_sets.VARIABLE)


@pytest.mark.parametrize("name", ["avx9", "AVX2", ""])
def test_an_unknown_instruction_set_in_the_environment(name, set_environment):
    set_environment(name)
    message = (
        f"environment variable XLNET_FAST_CPU_ISA: instruction set {name!r} is not one of auto, "
        "baseline"
    )
    problem = make_problem().to(torch.float32)
    with pytest.raises(ArgumentError, match=message):
        attend(**problem.operands, **problem.options)


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_caps_the_instruction_set(isa, set_environment):
    set_environment(isa)
    assert instruction_sets.instruction_set() == isa
    set_environment("auto")
    assert instruction_sets.instruction_set() == isa, "it is read once"
