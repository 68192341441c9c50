"""What the GPU backends of `rel_attention` must pass beside the cases; used by their tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attention_cases import Case, make_inputs
from attention_runs import operands
from torch import Tensor

from xlnet_fast import ops

CASE = Case(batch=2, rows=200, heads=4, head_dim=64, segments=True)


def gpu_operands() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Leaves and keyword arguments of a public call on the GPU."""
    x = make_inputs(CASE, torch.bfloat16, 0)
    keys, queries = operands(x, CASE)
    names = ("k", "v", "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")
    leaves = {name: getattr(keys, name).cuda().requires_grad_() for name in names}
    leaves = {"q": x.q.cuda().requires_grad_(), **leaves}
    segments = {"segments_q": queries.segments.cuda(), "segments_k": keys.segments.cuda()}
    return leaves, segments


def check_ordered_gradients_repeat(backend: str) -> None:
    """Bit for bit, where PyTorch is asked for deterministic algorithms."""
    leaves, segments = gpu_operands()

    def gradients() -> list[Tensor]:
        out = ops.rel_attention(**leaves, **segments, backend=backend)
        return list(torch.autograd.grad(out.float().square().sum(), list(leaves.values())))

    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(), gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    for name, one, other in zip(leaves, first, second, strict=True):
        assert torch.equal(one, other), name


def check_graph_capture(backend: str) -> None:
    """A captured step, replayed on other inputs and another seed, gives what an eager one gives."""
    leaves, segments = gpu_operands()
    seed = torch.tensor([5], device="cuda")

    def step() -> list[Tensor]:
        out = ops.rel_attention(**leaves, **segments, backend=backend, dropout_p=0.2, seed=seed)
        return [out, *torch.autograd.grad(out.float().square().sum(), list(leaves.values()))]

    stream = torch.cuda.Stream()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.cuda.stream(stream):
            step()  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
        with torch.no_grad():
            leaves["q"].mul_(0.5)
            seed.add_(7)
        graph.replay()
        torch.cuda.synchronize()
        for one, other in zip(captured, step(), strict=True):
            assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)


def check_compilation(backend: str) -> None:
    """`torch.compile` without a graph break."""
    leaves, segments = gpu_operands()

    def loss() -> Tensor:
        return ops.rel_attention(**leaves, **segments, backend=backend).float().square().sum()

    expected = torch.autograd.grad(loss(), list(leaves.values()))
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(), list(leaves.values()))
    for name, one, other in zip(leaves, expected, actual, strict=True):
        scale = one.float().abs().max()
        assert (one.float() - other.float()).abs().max() <= 0.02 * scale, name


def check_large_offsets(backend: str) -> None:
    """The last batch element of tensors of more than 2**31 elements is as it should be."""
    free, _ = torch.cuda.mem_get_info()
    batch, rows, heads, dim = 131, 1024, 128, 128  # 2.2e9 elements
    if free < 10 * batch * rows * heads * dim:
        pytest.skip(f"needs 22 GB of GPU memory, {free / 1e9:.0f} are free")
    q = torch.randn(batch, rows, heads, dim, device="cuda", dtype=torch.bfloat16)
    r = torch.randn(1, 2 * rows, heads, dim, device="cuda", dtype=torch.bfloat16)
    bias = torch.zeros(heads, dim, device="cuda", dtype=torch.bfloat16)
    out = ops.rel_attention(q, q, q, r, bias, bias, backend=backend)
    last = ops.rel_attention(*(q[-1:].clone() for _ in range(3)), r, bias, bias, backend=backend)
    assert torch.equal(out[-1:], last)


CHECKS = (check_ordered_gradients_repeat, check_graph_capture, check_compilation,
          check_large_offsets)  # fmt: skip


def run(check: Callable[[str], None], backend: str, request: pytest.FixtureRequest) -> None:
    """One of the checks; of several processes one at a time takes much memory."""
    if check is check_large_offsets:
        request.getfixturevalue("much_memory")
    check(backend)
