"""Cases of the kernels of relative attention with both streams in one launch, and their check.

The expected result is two calls of the formula, the query stream's with the rows of the
content-shaped mask and segments at its positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from attention_cases import Case, formula, make_inputs
from attention_runs import OPERANDS, moved, operands, places
from yardstick import gradient_bounds

from xlnet_fast.masks import AttentionMask, take_rows
from xlnet_fast.operands import Queries
from xlnet_fast.tolerance import assert_within, error_and_bound


@dataclass(frozen=True)
class Streams:
    """The content stream's case and the query stream's rows."""

    content: Case
    targets: int = 9
    positions: str | None = "sorted"  # "any" order, some "absent", or None: one row a position


CASES = {
    "streams-plain": Streams(Case(rows=33)),
    "streams-pretraining": Streams(
        Case(
            batch=4, groups=2, rows=70, memory=37, apart=True, segments=True, mask=("ranks",),
            dropout_p=0.2,
        ),
        targets=40,
    ),
    "streams-any-order": Streams(Case(rows=65, mask=("bits", "padding")), 17, "any"),
    "streams-absent": Streams(Case(rows=40, memory=3, mask=("ranks", "padding_left")), 7, "absent"),
    "streams-every-position": Streams(Case(rows=35, mask=("bits",), segments=True), 35, None),
    "streams-causal": Streams(Case(rows=33, memory=9, mask=("causal",), uni=True), 5, "any"),
    "streams-one-target": Streams(Case(rows=17, head_dim=20, mask=("ranks",)), 1),
    "streams-strided": Streams(Case(rows=33, memory=5, strided=True, mask=("padding",)), 6),
    "streams-window": Streams(
        Case(rows=65, memory=9, window=(9, 5), chunk=4, r_start=1, mask=("ranks",)), 17, "any"
    ),
}  # fmt: skip


def make_streams(case: Streams, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    """Arguments of `make_inputs` for the content stream, with q_g, positions_g and seed_g."""
    content = case.content
    x = make_inputs(content, dtype, seed)
    gen = torch.Generator().manual_seed(seed + 1)
    shape = (content.batch, case.targets, content.heads, content.head_dim)
    x.q_g = torch.randn(shape, generator=gen).to(dtype)
    x.positions_g = None
    if case.positions is not None:
        rows = [torch.randperm(content.rows, generator=gen) for _ in range(content.batch)]
        x.positions_g = torch.stack(rows)[:, : case.targets]
        if case.positions == "sorted":
            x.positions_g = x.positions_g.sort(dim=1).values
        if case.positions == "absent":
            x.positions_g[:, ::3] = -1
            x.positions_g[0] = -1
    x.mask = x.mask or AttentionMask()
    x.seed_g = None if x.seed is None else x.seed + 1
    return x


def stream_inputs(x: SimpleNamespace) -> tuple[SimpleNamespace, SimpleNamespace]:
    """The formula's inputs of each stream."""
    content = SimpleNamespace(**vars(x))
    content.mask = replace(x.mask, see_self=True)
    query = SimpleNamespace(**vars(x))
    query.q, query.seed, query.positions = x.q_g, x.seed_g, x.positions_g
    query.mask = replace(x.mask, see_self=False)
    if x.positions_g is not None:
        query.segments_q = take_rows(x.segments_q, x.positions_g)
        query.mask = replace(
            query.mask,
            rank_q=take_rows(x.mask.rank_q, x.positions_g),
            bits=take_rows(x.mask.bits, x.positions_g),
        )
    return content, query


def by_formula(
    x: SimpleNamespace, case: Streams, dtype: torch.dtype
) -> tuple[list[torch.Tensor], Callable[[torch.Tensor], dict[str, torch.Tensor]]]:
    """Outputs of both streams in `dtype`; the operands' gradients of one of both, side by side."""
    leaves = {
        name: getattr(x, name).to(dtype).detach().clone().requires_grad_()
        for name in ("q_g", *OPERANDS)
        if getattr(x, name) is not None
    }
    streams = stream_inputs(SimpleNamespace(**(vars(x) | leaves)))
    outs = [formula(stream, case.content, dtype) for stream in streams]
    both = torch.cat(outs, dim=1)

    def gradients_of(d_both: torch.Tensor) -> dict[str, torch.Tensor]:
        grads = torch.autograd.grad(
            both, list(leaves.values()), d_both.to(dtype), retain_graph=True, allow_unused=True
        )
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }

    return [out.detach() for out in outs], gradients_of


def run_streams(
    x: SimpleNamespace,
    case: Streams,
    d_outs: Sequence[torch.Tensor],
    backend: Any,
    device: str,
    deterministic: bool = True,
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Both outputs and every gradient by the kernels."""
    y = moved(x, device)
    keys, content = operands(y, case.content)
    streams = [
        replace(content, mask=replace(y.mask, see_self=True)),
        Queries(
            y.q_g, y.segments_q, replace(y.mask, see_self=False), y.positions_g, y.seed_g,
            by_position=True,
        ),
    ]  # fmt: skip
    outs = [torch.full_like(stream.q, float("nan")) for stream in streams]
    b, _, n, _ = x.q.shape
    stats = [torch.full((b, n, out.shape[1]), float("nan"), device=device) for out in outs]
    backend.rel_attention_forward(keys, streams, outs, stats)
    grads = {
        operand: torch.full_like(getattr(y, operand), float("nan"))
        for operand in ("q", "q_g", *OPERANDS[1:])
        if getattr(y, operand) is not None
    }
    backend.rel_attention_backward(
        keys, streams, outs, stats, [d_out.to(device) for d_out in d_outs],
        places(grads, ["q", "q_g"], case.content), deterministic,
    )  # fmt: skip
    return [out.cpu() for out in outs], {name: grad.cpu() for name, grad in grads.items()}


def check_streams(
    name: str,
    dtype: torch.dtype,
    backend: Any,
    device: str,
    case: Streams | None = None,
    ordered: bool | None = None,
) -> None:
    """Hold both outputs and every gradient of one case to the tolerance rule.

    `case`: instead of the one of that name. `ordered`: whether the same bits are asked for; by
    default of every second case.
    """
    case, number = case or CASES[name], list(CASES).index(name)
    ordered = number % 2 == 0 if ordered is None else ordered
    x = make_streams(case, dtype, seed=50 + number)
    gen = torch.Generator().manual_seed(number)
    d_h, d_g = (torch.randn(q.shape, generator=gen).to(dtype) for q in (x.q, x.q_g))
    outs, grads = run_streams(x, case, [d_h, d_g], backend, device, ordered)
    (eager, eager_gradients), (exact, exact_gradients) = (
        by_formula(x, case, kind) for kind in (dtype, torch.float64)
    )
    for stream, out, theirs, oracle in zip("hg", outs, eager, exact, strict=True):
        assert_within(out, theirs, oracle, f"{name} {dtype} out_{stream}")
    both = torch.cat([d_h, d_g], dim=1)
    of_dtype = {dtype: eager_gradients, torch.float64: exact_gradients}
    right, bounds = gradient_bounds(lambda kind, d: of_dtype[kind](d), dtype, both)
    for operand, grad in grads.items():
        error, _ = error_and_bound(grad, grad, right[operand])
        assert error <= bounds[operand], (
            f"{name} {dtype} d {operand}: error {error:.3e}, bound {bounds[operand]:.3e}"
        )
