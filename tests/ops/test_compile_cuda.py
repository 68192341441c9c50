"""torch.compile where the tensors are on a GPU: one graph, whatever runs, seen without a GPU.

The ops are traced with fake CUDA tensors. A whole model needs more of CUDA than a CPU build of
PyTorch fakes, so it is traced on the CPU while the dispatcher is told of a GPU. Nothing is run:
what is compiled is thrown away as soon as it is one graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from records import a_record, a_row
from torch._dynamo.exc import BackendCompilerFailed
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import XLNetConfig, XLNetModel

import xlnet_fast
from xlnet_fast import _extension, ops
from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops import _dispatch
from xlnet_fast.ops.qualification import proof
from xlnet_fast.ops.qualification.files import Found
from xlnet_fast.ops.qualification.record import CLASSES

GPU = torch.device("cuda", 0)
BF16 = torch.bfloat16


class _Captured(Exception):
    """Thrown in place of compiling a graph."""


def graph_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.fx.Graph:
    """The one graph of a call; where Dynamo breaks it or cannot trace it, its exception."""
    graphs: list[torch.fx.Graph] = []

    def capture(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(module.graph)
        raise _Captured

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=capture)
    with pytest.raises(BackendCompilerFailed, match="_Captured"):
        compiled(*args, **kwargs)
    (graph,) = graphs
    return graph


def backends_in(graph: torch.fx.Graph) -> set[str]:
    """What the attention ops of a graph are told to run."""
    calls = [
        node for node in graph.nodes
        if node.op == "call_function" and "attention" in str(node.target)
    ]  # fmt: skip
    assert calls
    return {str(node.args[-1]) for node in calls}


@dataclass(frozen=True)
class World:
    """What a call asks for; whether there is an extension; whether Triton is proved, and fast."""

    backend: str
    extension: bool = True
    record: bool = False

    @property
    def runs(self) -> str | None:
        """What the ops of a graph are to run; None where the backend is to raise."""
        if self.backend == "cuda" and not (self.extension and has_cuda_kernels()):
            return None
        if self.backend == "auto":
            return "triton|sdpa" if self.record else "sdpa"
        return self.backend


WORLDS = [
    World("auto", record=True), World("auto"), World("auto", extension=False), World("sdpa"),
    World("triton", extension=False), World("cuda"), World("cuda", extension=False),
]  # fmt: skip


@pytest.fixture(params=WORLDS, ids=str)
def world(request, monkeypatch):
    """An extension is found, or not, by the code that a user's process runs."""
    if not request.param.extension:
        monkeypatch.setattr(_extension, "_NAME", "xlnet_fast._nowhere")
        monkeypatch.setattr(_extension, "_cached_file", lambda: None)
    elif _extension.why_missing() is not None:
        pytest.skip("there is no C++ extension here, which another test tells of")
    rows = [
        a_row(2.0, op=op, operands=operands, dtype=dtype, head_dim="<32", direction=direction)
        for op in ("rel_attention", "two_stream_attention")
        for operands in CLASSES[op]
        for dtype in ("bfloat16", "float32")
        for direction in ("forward", "backward")
    ]
    found = Found(None, reason="no record of a GPU that is not there")
    if request.param.record:
        found = Found(a_record(rows), "a file")
    monkeypatch.setattr(proof, "found_for", lambda device, index: found)
    monkeypatch.setattr(_dispatch, "gpu_on", lambda device: "9.0")
    monkeypatch.setenv("XLNET_FAST_NO_WARN", "1")
    for cache in (_extension._find, proof._cached_verdicts):
        cache.cache_clear()
    yield request.param
    monkeypatch.undo()
    for cache in (_extension._find, proof._cached_verdicts):
        cache.cache_clear()


def has_cuda_kernels() -> bool:
    built = _extension.build_info()
    return built is not None and bool(built["cuda_archs"])


def test_ops_on_a_gpu_are_one_graph(world):
    mode = FakeTensorMode()
    with mode:
        shapes = [(2, 8, 2, 16)] * 3 + [(1, 16, 2, 16)] + [(2, 16)] * 2
        operands = [torch.empty(*shape, dtype=BF16, device=GPU) for shape in shapes]
        padding = torch.empty(2, 8, dtype=torch.bool, device=GPU)
        seed = torch.empty(1, dtype=torch.int64, device=GPU)
        hidden = torch.empty(8, 2, 32, dtype=BF16, device=GPU)

        def call(q, k, v, r, r_w_bias, r_r_bias, padding, seed, hidden):
            mask, backend = AttentionMask(key_padding=padding), world.backend
            keys = (k, v, r, r_w_bias, r_r_bias)
            random = {"dropout_p": 0.1, "seed": seed}
            one = ops.rel_attention(q, *keys, mask=mask, **random, backend=backend)
            two = ops.two_stream_attention(q, q, *keys, mask=mask, backend=backend)
            memory = ops.concat_memory(hidden, hidden, mem_len=8, backend=backend)
            return one, two, ops.masked_softmax(q, backend=backend), memory

        if world.runs is None:
            with pytest.raises(Exception, match=f"backend '{world.backend}' cannot run"):
                graph_of(call, *operands, padding, seed, hidden)
            return
        graph = graph_of(call, *operands, padding, seed, hidden)
    assert backends_in(graph) == {world.runs}
    assert len([node for node in graph.nodes if "xlnet_fast" in str(node.target)]) == 4


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The dispatcher is told that a model's CPU tensors are on a GPU."""
    original = _dispatch.request_on

    def request_on(op, device, dtype, **options):
        return original(op, GPU, dtype, **options)

    monkeypatch.setattr(_dispatch, "request_on", request_on)


CALLS: dict[str, dict[str, Any]] = {
    "padding and segments": {
        "attention_mask": torch.ones(2, 8),
        "token_type_ids": torch.zeros(2, 8, dtype=torch.int64),
    },
    "memory": {"mems": [torch.zeros(8, 2, 32, dtype=BF16)], "use_mems": True},
    "two streams": {
        "perm_mask": torch.zeros(2, 8, 8),
        "target_positions": torch.tensor([[3, 4], [5, -1]]),
    },
}


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    ("world", "calls"), [(WORLDS[0], CALLS), (WORLDS[2], ["two streams"])], indirect=["world"]
)
def test_a_model_on_a_gpu_is_one_graph(world, calls):
    config = XLNetConfig(
        vocab_size=50, d_model=32, n_layer=1, n_head=2, d_inner=64, mem_len=8, reuse_len=4
    )
    model = xlnet_fast.accelerate(XLNetModel(config).to(BF16), backend=world.backend)
    ids = torch.zeros(2, 8, dtype=torch.int64)
    for name in calls:
        training = name != "memory"
        with torch.set_grad_enabled(training):
            graph = graph_of(model.train(training), ids, **CALLS[name])
        assert backends_in(graph) == {world.runs}, name
