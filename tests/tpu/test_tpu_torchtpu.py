"""TorchTPU's way to the kernels, with a module in its place that has its interface.

What that interface is was read in public code: ``torch_tpu.pallas.jax_op(name, function)`` reads
the function's type hints and gives an op of ``torch.library`` for device "tpu".
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")

import jax
import jax.export
import torch
from schema_arguments import schema_arguments, small
from torch import Tensor
from tpu_interpreted import QUICK, to_jax, to_torch

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.tpu import torchtpu

OPS = torch.ops.xlnet_fast
TYPES = {jax.Array: "Tensor", jax.Array | None: "Tensor?", bool: "bool", int: "int",
         float: "float", str: "str"}  # fmt: skip


def jax_op(name: str, function: Callable[..., Any]) -> Any:
    """An op of the CPU in place of one of the TPU, by the type hints alone."""
    signature = inspect.signature(function)
    assert signature.parameters.keys() | {"return"} == function.__annotations__.keys()
    parameters = ", ".join(f"{TYPES[p.annotation]} {p.name}" for p in signature.parameters.values())
    results = ", ".join(TYPES[r] for r in signature.return_annotation.__args__)

    def run(*args: Any) -> tuple[Tensor, ...]:
        arrays = {n: to_jax(x) for n, x in enumerate(args) if isinstance(x, Tensor)}
        assert {str(x.dtype) for x in arrays.values()} <= {"float32", "int32", "bool"}
        assert not any(x.dtype == torch.int64 for x in args if isinstance(x, Tensor))

        def call(given: dict[int, jax.Array]) -> Any:
            return function(*(given.get(n, x) for n, x in enumerate(args)))

        return tuple(map(to_torch, jax.jit(call, compiler_options=QUICK)(arrays)))

    return torch.library.custom_op(
        name, run, mutates_args=(), schema=f"({parameters}) -> ({results})"
    )


@pytest.mark.parametrize("seed", [-5, 2**62 + 7])
def test_ops_of_torchtpu_give_what_ours_give(seed):
    problem = small(mask="content", segments=2).to(torch.float32)
    q = problem.operands["q"]
    args = list(schema_arguments(problem, 0.3))
    args[16] = torch.tensor([seed])
    made = torchtpu.implementations(jax_op, interpret=True)
    out, stats = made["rel_attention"](q, *args)
    exact, exact_stats = OPS.rel_attention(q, *args)
    torch.testing.assert_close(out, exact, atol=2e-5, rtol=2e-5)
    assert stats.shape == exact_stats.shape == (0,)
    if seed < 0:
        wanted = [n != 1 for n in range(10)]
        more = (torch.ones_like(out), exact, stats, q, *args)
        grads = made["rel_attention_backward"](wanted, *more)
        for ours, theirs in zip(grads, OPS.rel_attention_backward(wanted, *more), strict=True):
            torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=5e-5)


def test_jax_is_not_asked_for_its_tpu(monkeypatch):
    told: list[Callable[..., Any]] = []
    torchtpu.implementations(lambda name, function: told.append(function))
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("JAX would take the TPU"))
    problem = small().to(torch.float32)
    operands = [problem.operands["q"], *schema_arguments(problem)]
    arrays = [to_jax(x) if isinstance(x, Tensor) else x for x in operands]
    lowered = jax.export.export(jax.jit(lambda q: told[0](q, *arrays[1:])), platforms=["tpu"])
    assert "tpu_custom_call" in lowered(arrays[0]).mlir_module()


def test_two_streams_are_told_with_their_own_hints():
    told: dict[str, Callable[..., Any]] = {}
    torchtpu.implementations(lambda name, function: told.setdefault(name, function), chip="v5e")
    assert list(told) == [f"xlnet_fast_tpu::{name}_v5e" for name in torchtpu.OPS]
    signature = inspect.signature(told["xlnet_fast_tpu::two_stream_attention_backward_v5e"])
    names = list(signature.parameters)
    assert names[:7] == ["wanted", "grad_h", "grad_g", "out_h", "out_g", "stats_h", "stats_g"]
    assert signature.parameters["wanted"].annotation is str
    assert len(signature.return_annotation.__args__) == 11


REGISTERS = """
import sys, types, warnings, torch
from xlnet_fast import lowering
from xlnet_fast.ops._dispatch import Request, choose
made = []
package, pallas = types.ModuleType("torch_tpu"), types.ModuleType("torch_tpu.pallas")
pallas.jax_op = lambda name, function: made.append(name) or (lambda *args: name)
home = package
if sys.argv[1] == "_internal":
    home = package._internal = types.ModuleType("torch_tpu._internal")
    sys.modules["torch_tpu._internal"] = home
home.pallas = pallas
sys.modules["torch_tpu"] = package
torch.utils.rename_privateuse1_backend("tpu")
from xlnet_fast.tpu import torchtpu
request = Request("two_stream_attention", "tpu", torch.bfloat16, needs_grad=True)
assert choose(request).backend == "reference"
for chip in (None, None, "v6e"):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torchtpu.register(chip=chip)
    assert "never run under TorchTPU" in str(told[0].message)
assert choose(request).backend == "pallas"
assert made.count("xlnet_fast_tpu::rel_attention_backward_v6e") == 1, made
has = torch._C._dispatch_has_kernel_for_dispatch_key
assert all(has(f"xlnet_fast::{name}", "PrivateUse1") for name in torchtpu.OPS)
assert torchtpu._run("rel_attention", *range(29)) == "xlnet_fast_tpu::rel_attention_v6e"
"""


@pytest.mark.parametrize("home", ["public", "_internal"])
def test_it_registers_for_the_device_of_torchtpu(home):
    subprocess.run([sys.executable, "-c", REGISTERS, home], check=True, timeout=120)


def test_without_torchtpu_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tpu", None)
    with pytest.raises(BackendUnavailable, match=r"no TorchTPU here .*install torch_tpu"):
        torchtpu.register()
    with pytest.raises(ArgumentError, match="chip is 'v3'"):
        torchtpu.implementations(jax_op, chip="v3")
