"""The ops under `torch.compile` and `torch.export`: one graph for all sizes, the same numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cpu_kernels import needs_kernels
from hf_oracle import assert_same, make_problem
from schema_arguments import SEED, small
from torch import Tensor
from torch._dynamo.utils import counters
from two_sources import apart

from xlnet_fast import ops
from xlnet_fast.masks import AttentionMask


def attend_flat(
    backend: str, mask_flags: dict[str, bool], *tensors: Tensor, segmented: bool
) -> Tensor:
    """``rel_attention`` from tensors alone, the mask object made inside the traced function."""
    q, k, v, r, r_w_bias, r_r_bias, *rest = tensors
    options: dict[str, Any] = {}
    if segmented:
        names = ("r_s_bias", "seg_embed", "segments_q", "segments_k")
        options, rest = dict(zip(names, rest[:4], strict=True)), rest[4:]
    padding, rank_q, rank_k, seed = rest
    mask = AttentionMask(padding, rank_q, rank_k, **mask_flags)
    # Traced in plain ATen, the reference's dropout is ten rounds of integers: minutes of compiling.
    dropout = {} if backend == "reference" else {"dropout_p": 0.25, "seed": seed}
    return ops.rel_attention(
        q, k, v, r, r_w_bias, r_r_bias, **options, **dropout, mask=mask, backend=backend
    )


def flat_tensors(batch: int, queries: int, memory: int, segmented: bool) -> list[Tensor]:
    problem = make_problem(
        batch=batch, queries=queries, memory=memory, mask="content", segments=2 * segmented
    )
    x, options = problem.operands, problem.options
    mask = options["mask"]
    segments = [options["segments_q"], options["segments_k"]] if segmented else []
    return [*x.values(), *segments, mask.key_padding, mask.rank_q, mask.rank_k, SEED]


def outputs_and_grads(call: Callable[..., Tensor], tensors: list[Tensor]) -> dict[str, Tensor]:
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in tensors]
    out = call(*leaves)
    out.backward(out.detach().cos())
    grads = {f"d {i}": x.grad for i, x in enumerate(leaves) if x.is_floating_point()}
    return {"out": out.detach(), **grads}


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("backend", "segmented"),
    [("sdpa", False), ("sdpa", True), ("auto", True), ("reference", False)],
)
@pytest.mark.usefixtures("fresh_compiler")
def test_one_graph_for_all_sizes(backend, segmented):
    def call(*tensors: Tensor) -> Tensor:
        return attend_flat(backend, {"see_self": True}, *tensors, segmented=segmented)

    # The reference is plain ATen: what is made of its graph is PyTorch's own, and takes long.
    compiler = "eager" if backend == "reference" else "aot_eager"
    compiled = torch.compile(call, backend=compiler, fullgraph=True, dynamic=True)
    # No two sizes of the first call are equal, or the compiler takes them for one symbol.
    for sizes in [(3, 5, 6), (4, 7, 2), (2, 9, 5)]:
        tensors = flat_tensors(*sizes, segmented=segmented)
        expected = outputs_and_grads(call, tensors)
        assert_same(outputs_and_grads(compiled, tensors), expected, 1e-12)
        assert counters["stats"]["unique_graphs"] == 1, f"it recompiled for {sizes}"
    assert not counters["graph_break"]


@pytest.mark.usefixtures("fresh_compiler")
def test_one_graph_with_the_memory_apart():
    def call(q: Tensor, k: Tensor, v: Tensor, k_memory: Tensor, v_memory: Tensor, *rest: Tensor):
        r, r_w_bias, r_r_bias = rest
        return ops.rel_attention(
            q, k, v, r, r_w_bias, r_r_bias, k_memory=k_memory, v_memory=v_memory, backend="sdpa"
        )

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch, queries, memory in [(3, 5, 6), (4, 7, 2), (2, 9, 5)]:
        x = apart(make_problem(batch=batch, queries=queries, memory=memory)).operands
        names = ("q", "k", "v", "k_memory", "v_memory", "r", "r_w_bias", "r_r_bias")
        tensors = [x[name] for name in names]
        expected = outputs_and_grads(call, tensors)
        assert_same(outputs_and_grads(compiled, tensors), expected, 1e-12)
    assert counters["stats"]["unique_graphs"] == 1


@needs_kernels
@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.usefixtures("fresh_compiler")
def test_one_graph_of_the_cpu_kernels(backend):
    """In fp32, which they take: the compiled graph calls the same kernels, bit for bit."""

    def call(*tensors: Tensor) -> Tensor:
        return attend_flat(backend, {"see_self": True}, *tensors, segmented=True)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    for sizes in [(3, 5, 6), (4, 7, 2), (2, 9, 5)]:
        tensors = [x.float() if x.is_floating_point() else x for x in flat_tensors(*sizes, True)]
        expected = outputs_and_grads(call, tensors)
        assert_same(outputs_and_grads(compiled, tensors), expected, 0.0)
        assert counters["stats"]["unique_graphs"] == 1, f"it recompiled for {sizes}"
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("sdpa", torch.float64), pytest.param("cpu", torch.float32, marks=needs_kernels)],
)
@pytest.mark.usefixtures("fresh_compiler")
def test_one_graph_with_a_window_and_one_table_for_all_heads(backend, dtype):
    """Nor do other numbers of a window break the graph."""

    def call(padding: Tensor, window: tuple[int, int], chunk: int, *tensors: Tensor) -> Tensor:
        mask = AttentionMask(key_padding=padding, window=window, chunk=chunk)
        return ops.rel_attention(*tensors, mask=mask, r_start=1, backend=backend)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch, queries in [(3, 5), (4, 7)]:
        for window, chunk in [((3, 1), 1), ((4, 0), 3)]:
            problem = make_problem(
                batch=batch, queries=queries, memory=0, mask="right", start=1, one_table=True
            ).to(dtype)
            tensors = list(problem.operands.values())
            numbers = (problem.options["mask"].key_padding, window, chunk)
            ours, plain = (functools.partial(f, *numbers) for f in (compiled, call))
            assert_same(outputs_and_grads(ours, tensors), outputs_and_grads(plain, tensors), 1e-6)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.usefixtures("fresh_compiler")
def test_inductor():
    def call(*tensors: Tensor) -> Tensor:
        return attend_flat("sdpa", {"see_self": True}, *tensors, segmented=True)

    compiled = torch.compile(call, fullgraph=True, dynamic=True)
    tensors = flat_tensors(3, 5, 6, segmented=True)
    assert_same(outputs_and_grads(compiled, tensors), outputs_and_grads(call, tensors), 1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.usefixtures("fresh_compiler")
def test_the_other_ops_compile(backend):
    problem = apart(small(segments=2, mask="query"))
    x, mask = problem.operands, problem.options["mask"]
    positions = torch.tensor([[2, 0, -1], [1, 3, 2]])

    def call(rank_q: Tensor, rank_k: Tensor, segments: Tensor, x: dict[str, Tensor]) -> Any:
        mask = AttentionMask(rank_q=rank_q, rank_k=rank_k)
        others = {name: value for name, value in x.items() if name != "q"}
        q = x["q"]
        streams = ops.two_stream_attention(
            q, q[:, :3], **others, segments=segments, mask=mask, positions=positions,
            backend=backend,
        )  # fmt: skip
        scores = torch.einsum("bind,bjnd->bnij", q, torch.cat([x["k_memory"], x["k"]], 1))
        probabilities = ops.masked_softmax(scores, mask=mask, scale=0.5, backend=backend)
        memory = ops.concat_memory(
            q.flatten(2).transpose(0, 1), x["k"].flatten(2).transpose(0, 1), 5, backend=backend
        )
        return *streams, probabilities, memory

    arguments = (mask.rank_q, mask.rank_k, problem.options["segments_k"], x)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for actual, expected in zip(compiled(*arguments), call(*arguments), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.usefixtures("fresh_compiler")
def test_memory_of_all_layers_compiles(backend):
    def call(hidden: list[Tensor], memory: list[Tensor]) -> list[Tensor]:
        hidden = [x.cos() for x in hidden]
        return [x + 1 for x in ops.concat_memories(hidden, memory, 5, 3, backend=backend)]

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    for length, past in [(4, 3), (7, 4), (2, 9)]:
        hidden = [torch.randn(length, 2, 3) for _ in range(2)]
        memory = [torch.randn(past, 2, 3) for _ in range(2)]
        for actual, expected in zip(compiled(hidden, memory), call(hidden, memory), strict=True):
            assert torch.equal(actual, expected)


# --- export --------------------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """Attention over one segment, with padding and segments, as a module to export."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        problem = make_problem(segments=2)
        for name in ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed"):
            self.register_parameter(name, torch.nn.Parameter(problem.operands[name]))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, r: Tensor, segments: Tensor, padding: Tensor
    ) -> Tensor:
        return ops.rel_attention(
            q, k, v, r, self.r_w_bias, self.r_r_bias, r_s_bias=self.r_s_bias,
            seg_embed=self.seg_embed, segments_q=segments, segments_k=segments,
            mask=AttentionMask(key_padding=padding, see_self=True), backend=self.backend,
        )  # fmt: skip


def export_inputs(batch: int, length: int) -> tuple[Tensor, ...]:
    problem = make_problem(batch=batch, queries=length, memory=0, mask="left", segments=2)
    x, options = problem.operands, problem.options
    names = ("q", "k", "v", "r")
    return *(x[name] for name in names), options["segments_k"], options["mask"].key_padding


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.usefixtures("fresh_compiler")
def test_export_with_dynamic_batch_and_length(strict):
    """A model with the reference is exported in tests/hf."""
    module = Attention("sdpa")
    batch, length = torch.export.Dim("batch", max=1024), torch.export.Dim("length", max=4096)
    row = {0: batch, 1: length}
    shapes = (row, row, row, {1: 2 * length}, row, row)
    exported = torch.export.export(
        module, export_inputs(3, 6), dynamic_shapes=shapes, strict=strict
    )
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    ours = {target for target in targets if target.startswith("xlnet_fast")}
    assert ours == {"xlnet_fast.rel_attention.default"}
    foreign = {t for t in targets if not t.startswith(("aten.", "xlnet_fast.", "<built-in", "sym"))}
    assert not foreign
    for sizes in [(3, 6), (2, 11), (5, 4)]:
        inputs = export_inputs(*sizes)
        torch.testing.assert_close(
            exported.module()(*inputs), module(*inputs), atol=1e-12, rtol=1e-12
        )
