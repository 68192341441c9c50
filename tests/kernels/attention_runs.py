"""Runs a backend's kernels of `rel_attention` on the cases and holds it to the tolerance rule.

A backend is a module with `rel_attention_forward` and `rel_attention_backward`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from attention_cases import CASES, Case, formula, make_inputs
from yardstick import gradient_bounds

from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.tolerance import assert_within, error_and_bound

SENTINEL = 777.0
OPERANDS = ("q", "k", "v", "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")


def moved(x: SimpleNamespace, device: str) -> SimpleNamespace:
    there = SimpleNamespace()
    for name, value in vars(x).items():
        if isinstance(value, AttentionMask):
            tensors = [None if t is None else t.to(device) for t in value.tensors]
            value = AttentionMask.from_parts(tensors, value.flags)
        elif isinstance(value, torch.Tensor) and device != "cpu":
            # `.to` would drop the guard around a view: move its whole storage
            whole = value.as_strided((value.untyped_storage().nbytes() // value.itemsize,), (1,), 0)
            value = whole.to(device).as_strided(value.shape, value.stride(), value.storage_offset())
        setattr(there, name, value)
    return there


def operands(x: SimpleNamespace, case: Case) -> tuple[Keys, Queries]:
    """The inputs as backends take them."""
    k, v, k_memory, v_memory = x.k, x.v, None, None
    if case.apart:
        k, v, k_memory, v_memory = (
            y[:, part] for part in (slice(case.memory, None), slice(case.memory)) for y in (k, v)
        )
        if case.strided:  # strides of its own
            k_memory, v_memory = k_memory.contiguous(), v_memory.contiguous()
    keys = Keys(
        k, v, k_memory, v_memory, x.r, x.r_w_bias, x.r_r_bias, x.r_s_bias, x.seg_embed,
        x.segments_k, case.memory, case.head_dim**-0.5, case.dropout_p, case.r_start,
    )  # fmt: skip
    return keys, Queries(x.q, x.segments_q, x.mask or AttentionMask(), x.positions, x.seed)


class Forward(NamedTuple):
    """A forward pass: what it took and what it left to the backward pass."""

    keys: Keys
    queries: Queries
    out: torch.Tensor  # (B, I, N, D)
    stats: torch.Tensor  # (B, N, I)


def run_forward(x: SimpleNamespace, case: Case, backend: Any, device: str) -> Forward:
    """Run the kernel into a guarded output; also proves that nothing around it is written."""
    y = moved(x, device)
    b, i, n, d = x.q.shape
    if case.strided:
        buffer = torch.full((b, n, i + 1, d + case.pad), SENTINEL, dtype=x.q.dtype, device=device)
        out = buffer[:, :, :i, :d].transpose(1, 2)
    else:
        buffer = torch.full((b, i + 1, n, d), SENTINEL, dtype=x.q.dtype, device=device)
        out = buffer[:, :i]
    out.fill_(float("nan"))
    keys, queries = operands(y, case)
    stats = torch.full((b, n, i), float("nan"), device=device)
    backend.rel_attention_forward(keys, [queries], [out], [stats])
    around = buffer.clone()
    around.as_strided(out.shape, out.stride(), out.storage_offset()).fill_(SENTINEL)
    assert bool((around == SENTINEL).all()), "the kernel wrote outside of `out`"
    return Forward(keys, queries, out, stats)


def launch(x: SimpleNamespace, case: Case, backend: Any, device: str) -> torch.Tensor:
    """The output by the kernel, on the CPU."""
    return run_forward(x, case, backend, device).out.cpu()


def by_formula(
    x: SimpleNamespace, case: Case, dtype: torch.dtype
) -> tuple[torch.Tensor, Callable[[torch.Tensor], dict[str, torch.Tensor]]]:
    """The output of the formula in `dtype`, and the operands' gradients of a gradient of it."""
    leaves = {
        name: getattr(x, name).to(dtype).detach().clone().requires_grad_()
        for name in OPERANDS
        if getattr(x, name) is not None
    }
    out = formula(SimpleNamespace(**(vars(x) | leaves)), case, dtype)

    def gradients_of(d_out: torch.Tensor) -> dict[str, torch.Tensor]:
        grads = torch.autograd.grad(
            out, list(leaves.values()), d_out.to(dtype), retain_graph=True, allow_unused=True
        )
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }

    return out.detach(), gradients_of


def run_backward(
    forward: Forward,
    x: SimpleNamespace,
    case: Case,
    d_out: torch.Tensor,
    backend: Any,
    deterministic: bool = True,
    only: int | None = None,
) -> dict[str, torch.Tensor]:
    """Gradients by the kernels, on the CPU; NaN where none was written.

    `only`: the number of the one gradient asked for, in the order of `places`.
    """
    device = forward.out.device.type
    grads = {
        name: torch.full_like(getattr(x, name), float("nan"), device=device)
        for name in OPERANDS
        if getattr(x, name) is not None
    }
    wanted = places(grads, ["q"], case)
    if only is not None:
        wanted = [grad if number == only else None for number, grad in enumerate(wanted)]
    d_out = moved(SimpleNamespace(d_out=d_out), device).d_out
    backend.rel_attention_backward(
        forward.keys, [forward.queries], [forward.out], [forward.stats], [d_out], wanted,
        deterministic,
    )  # fmt: skip
    return {name: grad.cpu() for name, grad in grads.items()}


def gradients(
    x: SimpleNamespace,
    case: Case,
    d_out: torch.Tensor,
    backend: Any,
    device: str,
    deterministic: bool = True,
    only: int | None = None,
) -> dict[str, torch.Tensor]:
    """`run_backward` of a forward pass of its own."""
    forward = run_forward(x, case, backend, device)
    return run_backward(forward, x, case, d_out, backend, deterministic, only)


def places(
    grads: dict[str, torch.Tensor], queries: list[str], case: Case
) -> list[torch.Tensor | None]:
    """Where the backward pass is to write: the gradients' tensors, or parts of them, in order."""
    parts: list[torch.Tensor | None] = [grads[name] for name in queries]
    parts += [grads[name][:, case.memory if case.apart else 0 :] for name in ("k", "v")]
    parts += [grads[name][:, : case.memory] if case.apart else None for name in ("k", "v")]
    return parts + [grads.get(name) for name in OPERANDS[3:]]


def number_of(name: str) -> int:
    """Of a case; those of a backend's own share one."""
    return [*CASES, name].index(name)


def check_passes(
    name: str,
    dtype: torch.dtype,
    backend: Any,
    device: str,
    case: Case | None = None,
    ordered: bool | None = None,
) -> None:
    """Hold the output and every gradient of one case to the tolerance rule.

    `case`: instead of the one of that name. `ordered`: whether the same bits are asked for; by
    default of every second case.
    """
    case, number = case or CASES[name], number_of(name)
    ordered = number % 2 == 0 if ordered is None else ordered
    x = make_inputs(case, dtype, seed=number)
    d_out = torch.randn(x.q.shape, generator=torch.Generator().manual_seed(number)).to(dtype)
    if x.positions is not None:
        d_out[x.positions < 0] = float("nan")  # of an absent row: nobody may read it
    forward = run_forward(x, case, backend, device)
    (exact, exact_gradients), (eager, eager_gradients) = (
        by_formula(x, case, kind) for kind in (torch.float64, dtype)
    )
    _check_output(forward.out.cpu(), eager, exact, x, f"{name} {dtype}")
    clean = d_out.nan_to_num()
    of_dtype = {torch.float64: exact_gradients, dtype: eager_gradients}
    right, bounds = gradient_bounds(lambda kind, d: of_dtype[kind](d), dtype, clean)
    for operand, grad in run_backward(forward, x, case, d_out, backend, ordered).items():
        error, _ = error_and_bound(grad, grad, right[operand])
        assert error <= bounds[operand], (
            f"{name} {dtype} d {operand}: error {error:.3e}, bound {bounds[operand]:.3e}"
        )


def check_output(
    name: str, dtype: torch.dtype, backend: Any, device: str, case: Case | None = None
) -> None:
    """Hold the output alone to the tolerance rule, as `check_passes` does."""
    case = case or CASES[name]
    x = make_inputs(case, dtype, seed=number_of(name))
    exact, eager = formula(x, case, torch.float64), formula(x, case, dtype)
    _check_output(launch(x, case, backend, device), eager, exact, x, f"{name} {dtype}")


def _check_output(
    out: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, x: SimpleNamespace, label: str
) -> None:
    if x.positions is not None:
        assert bool((out[x.positions < 0] == 0).all()), "an absent row is not exactly zero"
    assert_within(out, eager, exact, label)


_LONG = Case(batch=1, rows=372, heads=1, head_dim=16, window=(9, 5))
LEFT_OUT = {
    "window-plain": _LONG,
    "window-chunked": replace(_LONG, memory=7, window=(9, 0), chunk=8, r_start=1),
    # Rows behind the padding see no key: they read all keys, and all keys get a gradient of theirs.
    "window-padded": replace(_LONG, mask=("padding",)),
}
"""Long calls with short windows."""


def check_left_out(name: str, dtype: torch.dtype, backend: Any, device: str) -> None:
    """What is far beyond the window is not read: NaN there reaches nobody.

    A tile that is read spreads NaN, as 0 * NaN is NaN. It has up to 64 rows and as many keys.
    """
    case, far, near = LEFT_OUT[name], slice(194, 254), slice(64)
    x = make_inputs(case, dtype, seed=0)
    d_out = torch.randn(x.q.shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    def both_passes() -> dict[str, torch.Tensor]:
        forward = run_forward(x, case, backend, device)
        grads = run_backward(forward, x, case, d_out, backend)
        found = {"out": forward.out.cpu()[:, near]}
        found |= {operand: grads[operand][:, near] for operand in ("q", "k", "v")}
        met = x.k.shape[1] + torch.tensor([-200, 200])  # rows of r between which windows lie
        return found | {"r": torch.cat([grads["r"][:, : met[0]], grads["r"][:, met[1] :]], 1)}

    clean = both_passes()
    for operand in (x.q, d_out) if case.mask else (x.q, d_out, x.k, x.v):
        operand[:, far] = float("nan")
    for name, part in both_passes().items():
        assert torch.equal(part, clean[name]), name
