"""What every backend of ``rel_attention`` must pass, whatever its numbers; used by its tests.

``attend`` is ``ops.rel_attention`` with a backend; ``sizes`` go to ``make_problem``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from hf_oracle import F64, Problem, assert_same, make_problem, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from two_sources import apart, kernel_operands

from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import Queries
from xlnet_fast.philox import keep_mask

Attention = Callable[..., Tensor]


# --- rows and keys that must not matter ----------------------------------------------------------


def check_padding_may_hold_anything(
    attend: Attention, value: float, dtype: torch.dtype = F64, **sizes: Any
) -> None:
    """NaN or infinity in padded keys and values changes no bit."""
    problem = make_problem(mask="left", segments=2, **sizes).to(dtype)
    clean = run(attend, problem)
    operands = dict(problem.operands)
    padded = problem.options["mask"].key_padding
    for name in ("k", "v"):
        operands[name] = operands[name].masked_fill(padded[..., None, None], value)
    assert_same(run(attend, replace(problem, operands=operands)), clean, 0.0)


def check_padding_in_a_memory_apart(
    attend: Attention, value: float, dtype: torch.dtype = F64, **sizes: Any
) -> None:
    """The same where some of the padded keys lie in a memory of its own tensors."""
    memory = 6
    problem = make_problem(mask="left", memory=memory, **sizes).to(dtype)
    padded = problem.options["mask"].key_padding.clone()
    padded[1:, :2] = True  # memory of a shorter past
    options = {**problem.options, "mask": AttentionMask(key_padding=padded)}
    problem = apart(replace(problem, options=options))
    clean = run(attend, problem)
    operands = dict(problem.operands)
    for name in ("k", "v"):
        for part, keys in ((f"{name}_memory", slice(0, memory)), (name, slice(memory, None))):
            hidden = padded[:, keys, None, None]
            operands[part] = operands[part].masked_fill(hidden, value)
    assert_same(run(attend, replace(problem, operands=operands)), clean, 0.0)


def check_rows_of_r_beyond_the_table(
    attend: Attention,
    mask: str,
    targets: int | None,
    dtype: torch.dtype = F64,
    tolerance: float = 0.0,
    **sizes: Any,
) -> None:
    """Rows of r that belong to no distance are not read, and their gradient is zero."""
    problem = make_problem(mask=mask, targets=targets, **sizes).to(dtype)
    clean = run(attend, problem)
    r = problem.operands["r"]
    _, _, keys, memory = problem.sizes
    missing = 2 * keys - memory - r.shape[1]
    # A causal table may have as many rows as a bidirectional one; what lies beyond is nobody's.
    padding = r.new_zeros(1, missing, *r.shape[2:])
    beyond = torch.full((1, 3, *r.shape[2:]), float("nan"), dtype=dtype)
    longer = {**problem.operands, "r": torch.cat([r, padding, beyond], 1)}
    dirty = run(attend, replace(problem, operands=longer))
    assert (dirty["d r"][:, r.shape[1] :] == 0).all()
    dirty["d r"] = dirty["d r"][:, : r.shape[1]]
    assert_same(dirty, clean, tolerance)


def check_uniform_rows(
    attend: Attention, dtype: torch.dtype, mask: str, keys: int = 8, **sizes: Any
) -> None:
    """A row that sees nothing is exactly uniform over all J keys, as the dtype rounds 1 / J."""
    problem = make_problem(mask=mask, segments=2, queries=keys - 3, memory=3, dim=keys, **sizes).to(
        dtype
    )
    batch, _, _, _ = problem.sizes
    operands = {name: 30 * x for name, x in problem.operands.items()}  # scores far apart
    operands["v"] = torch.eye(keys, dtype=dtype)[:, None].expand(batch, keys, 2, keys)
    out = attend(**operands, **problem.options)
    rows = slice(None) if mask == "nothing visible" else slice(0, None, out.shape[1] - 1)
    assert torch.equal(out[:, rows], torch.full_like(out[:, rows], 1 / keys))


def check_absent_rows(attend: Attention, dtype: torch.dtype = F64, **sizes: Any) -> None:
    """Absent rows alone give zeros and no gradient, also where there are no current keys."""
    problem = make_problem(**{"queries": 3, "memory": 5, "segments": 2, **sizes}).to(dtype)
    batch, rows, keys, _ = problem.sizes
    options = {**problem.options, "positions": torch.full((batch, rows), -1)}
    result = run(attend, replace(problem, options=options))
    assert all((value == 0).all() for value in result.values())
    memory_only = {**options, "memory_length": keys}
    result = run(attend, replace(problem, options=memory_only))
    assert all((value == 0).all() for value in result.values())


# --- strides -------------------------------------------------------------------------------------


def heads_first(x: Tensor) -> Tensor:
    """(B, I, N, D) whose memory is laid out (B, N, I, D)."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def every_second(x: Tensor) -> Tensor:
    """Elements two apart, NaN between them."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def offset(x: Tensor) -> Tensor:
    """A slice behind a first element full of NaN."""
    longer = torch.cat([torch.full_like(x[:1], float("nan")), x])
    return longer[1:]


def check_strides(
    attend: Attention, targets: int | None, dtype: torch.dtype = F64, **sizes: Any
) -> None:
    """The layout of operands and of the output's gradient changes no bit; the output is like q."""
    problem = make_problem(mask="left", segments=2, targets=targets, groups=2, **sizes)
    problem = apart(problem.to(dtype))
    expected = run(attend, problem)
    for layout in (heads_first, every_second, offset):
        operands = {
            name: layout(x) if x.dim() == 4 else every_second(x)
            for name, x in problem.operands.items()
        }
        leaves = {name: x.detach().requires_grad_() for name, x in operands.items()}
        out = attend(**leaves, **problem.options)
        out.backward(heads_first(problem.grad_out()))
        assert torch.equal(out, expected["out"])
        for name, leaf in leaves.items():
            assert torch.equal(leaf.grad, expected[f"d {name}"]), name
    q = heads_first(problem.operands["q"])
    out = attend(**{**problem.operands, "q": q}, **problem.options)
    assert out.stride() == q.stride()


def check_expanded_operands(attend: Attention, dtype: torch.dtype = F64, **sizes: Any) -> None:
    """Operands and gradients whose elements share memory."""
    problem = make_problem(**{"batch": 3, "segments": 2, **sizes}).to(dtype)
    batch = problem.sizes[0]
    shared = problem.operands["k"][:1].expand(batch, -1, -1, -1)
    bias = problem.operands["r_w_bias"]
    bias = bias[:, :1].expand(bias.shape)
    expanded = {**problem.operands, "k": shared, "v": shared, "r_w_bias": bias}
    plain = {name: x.contiguous() for name, x in expanded.items()}
    results = []
    for operands in (expanded, plain):
        leaves = {name: x.detach().requires_grad_() for name, x in operands.items()}
        attend(**leaves, **problem.options).sum().backward()  # an expanded gradient
        results.append({name: leaf.grad for name, leaf in leaves.items()})
    for name, grad in results[0].items():
        assert torch.equal(grad, results[1][name]), name


def check_options_of_any_stride(attend: Attention, dtype: torch.dtype = F64, **sizes: Any) -> None:
    """Segments and ranks of other strides and integer types."""
    problem = make_problem(**{"mask": "query", "segments": 3, "queries": 6, **sizes}).to(dtype)
    mask = problem.options["mask"]
    strided = {
        name: problem.options[name].t().contiguous().t() for name in ("segments_q", "segments_k")
    }
    strided["mask"] = replace(
        mask, rank_q=mask.rank_q.t().contiguous().t(), rank_k=mask.rank_k.long()
    )
    other = replace(problem, options={**problem.options, **strided})
    assert_same(run(attend, other), run(attend, problem), 0.0)


# --- dropout -------------------------------------------------------------------------------------


def dropped_and_kept(
    attend: Attention, groups: int, dtype: torch.dtype = F64, keys: int = 8, **sizes: Any
) -> tuple[Tensor, Tensor]:
    """Probabilities (B, I, N, J) under dropout, and what they should be; zeros checked exactly."""
    seed, p = torch.tensor(-12345), 0.3
    problem = make_problem(dim=keys, queries=keys - 3, memory=3, groups=groups, **sizes).to(dtype)
    batch, rows, _, _ = problem.sizes
    eye = torch.eye(keys, dtype=dtype)[:, None].expand(batch, keys, 2, keys)
    operands = {**problem.operands, "v": eye}
    out = attend(**operands, **problem.options, dropout_p=p, seed=seed)
    keep = keep_mask(seed, p, batch, 2, (0, rows), keys).transpose(1, 2)  # (B, I, N, J)
    assert torch.equal(out != 0, keep)
    whole = attend(**operands, **problem.options)
    return out, whole * keep / (1 - p)


# --- memory --------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Remembers the largest storage, in bytes, that any operator returns."""

    nbytes = 0
    maker = ""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage().nbytes() > self.nbytes:
                self.nbytes, self.maker = x.untyped_storage().nbytes(), str(func)
        return result


def both_passes(backend: ModuleType, problem: Problem) -> tuple[LargestTensor, Queries]:
    """The largest tensor of a backend's passes with dropout, and the queries that they took."""
    keys, queries = kernel_operands(problem, 0.1, torch.tensor(1))
    out, none = torch.zeros_like(queries.q), torch.zeros(0)
    likes = [problem.operands.get(name) for name in GRADIENTS]
    grads = [None if like is None else torch.zeros_like(like) for like in likes]
    grad_out = problem.grad_out()
    with LargestTensor() as largest:
        backend.rel_attention_forward(keys, [queries], [out], [none])
        backend.rel_attention_backward(
            keys, [queries], [out], [none], [grad_out], grads, deterministic=False
        )
    return largest, queries


# --- only what is asked for -----------------------------------------------------------------------

GRADIENTS = (
    "q",
    "k",
    "v",
    "k_memory",
    "v_memory",
    "r",
    "r_w_bias",
    "r_r_bias",
    "r_s_bias",
    "seg_embed",
)
"""Of one stream, in the order in which a backend's backward entry takes them."""


def gradients(backend: ModuleType, problem: Problem, wanted: set[str]) -> dict[str, Tensor]:
    """Those of the backward kernel, by name; the kernel gets None for the others."""
    keys, queries = kernel_operands(problem)
    grads = {
        name: torch.full_like(problem.operands[name], float("nan"))
        for name in GRADIENTS
        if name in wanted
    }
    none = torch.zeros(0)
    backend.rel_attention_backward(
        keys, [queries], [none], [none], [problem.grad_out()],
        [grads.get(name) for name in GRADIENTS], deterministic=True,
    )  # fmt: skip
    return grads


def check_one_gradient_alone(
    attend: Attention, backend: ModuleType, name: str, dtype: torch.dtype = F64, **sizes: Any
) -> None:
    """A gradient asked for alone has the bits it has among all."""
    problem = apart(make_problem(mask="left", segments=2, **sizes).to(dtype))
    everything = gradients(backend, problem, set(GRADIENTS))
    expected = run(attend, problem)
    assert_same(
        {f"d {n}": x for n, x in everything.items()} | {"out": expected["out"]}, expected, 0
    )
    assert_same(gradients(backend, problem, {name}), {name: everything[name]}, 0.0)
