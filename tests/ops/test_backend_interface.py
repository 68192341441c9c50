"""What the registered attention ops hand to a backend's module, and what they take from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from schema_arguments import schema_arguments, small, with_grad
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from two_sources import apart

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.ops._contracts import rel_attention as contract

OPS = torch.ops.xlnet_fast


class Recorder:
    """Stands for a backend's module: remembers its arguments and fills what it should."""

    def __init__(self) -> None:
        self.forward: tuple[Any, ...] = ()
        self.backward: tuple[Any, ...] = ()

    def rel_attention_forward(
        self, keys: Keys, streams: list[Queries], outs: list[Tensor], stats: list[Tensor]
    ) -> None:
        self.forward = keys, streams, outs, stats
        for number, (out, stat) in enumerate(zip(outs, stats, strict=True)):
            out.fill_(number)
            stat.fill_(10 + number)

    def rel_attention_backward(self, *args: Any) -> None:
        self.backward = args
        for grad in args[5]:
            if grad is not None:
                grad.fill_(1.0)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    backend = Recorder()
    monkeypatch.setattr(contract, "_kernels", lambda name: backend)
    return backend


def test_a_fused_backend_gets_two_streams_and_its_statistics_back(recorder):
    problem = apart(small(segments=2, mask="query"))
    q_h = problem.operands["q"]
    positions = torch.tensor([[2, 0, -1], [1, 3, 2]])
    args = list(schema_arguments(problem, 0.2, "triton"))
    args[15] = positions
    tensors = with_grad((q_h, q_h[:, :3], *args))
    _, out_g, stats_h, stats_g = OPS.two_stream_attention(*tensors)
    keys, streams, outs, stats = recorder.forward
    assert keys.count == 6
    assert (keys.current, keys.k.shape[1], keys.k_memory.shape[1]) == (4, 4, 2)
    assert (keys.scale, keys.dropout_p) == (problem.options["scale"], 0.2)
    assert torch.equal(keys.segments, problem.options["segments_k"])
    content, query = streams
    assert (content.mask.see_self, query.mask.see_self) == (True, False)
    assert (content.by_position, query.by_position) == (False, True)
    assert content.positions is None
    assert torch.equal(query.positions, positions)
    assert (int(content.seed), int(query.seed)) == (11, 12)
    for stream in streams:  # nothing is gathered for the backend
        assert stream.mask.rank_q is problem.options["mask"].rank_q
        assert torch.equal(stream.segments, problem.options["segments_q"])
    assert [tuple(x.shape) for x in stats] == [(2, 2, 4), (2, 2, 3)]
    assert all(x.dtype == torch.float32 for x in stats)
    assert not stats_h.requires_grad
    assert not stats_g.requires_grad

    out_g.sum().backward()  # the content stream's gradient is zero, not absent
    _, streams, outs, stats, grad_outs, grads, deterministic = recorder.backward
    assert [int(x.flatten()[0]) for x in (*outs, *stats)] == [0, 1, 10, 11]
    assert [float(x.sum()) for x in grad_outs] == [0.0, out_g.numel()]
    assert all(grad is not None for grad in grads)
    assert [tuple(grad.shape) for grad in grads] == [
        tuple(x.shape) for x in tensors if isinstance(x, Tensor) and x.requires_grad
    ]
    assert deterministic is False


def test_a_backend_hears_of_determinism_and_of_what_nobody_wants(recorder):
    problem = small(segments=2)
    args = with_grad((problem.operands["q"], *schema_arguments(problem, 0.0, "triton")))
    frozen = (0, 6, 9)  # q, r_w_bias, seg_embed
    args = tuple(x.detach() if i in frozen else x for i, x in enumerate(args))
    torch.use_deterministic_algorithms(True)
    try:
        OPS.rel_attention(*args)[0].sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    grads, deterministic = recorder.backward[5:]
    assert deterministic is True
    without = (*frozen, 3, 4)  # there is no k_memory and no v_memory
    assert [i for i, grad in enumerate(grads) if grad is None] == sorted(without)
    for i, x in enumerate(args[:10]):
        assert (x is None or x.grad is None) == (i in without)


def test_a_backend_never_sees_an_empty_stream(recorder):
    problem = small()
    q = problem.operands["q"]
    args = list(schema_arguments(problem, 0.0, "triton"))
    args[15] = torch.zeros(2, 0, dtype=torch.int64)
    tensors = with_grad((q, q[:, :0], *args))
    out_h, out_g, *stats = OPS.two_stream_attention(*tensors)
    assert [len(x) for x in recorder.forward[1:]] == [1, 1, 1]
    assert out_g.shape == (2, 0, 2, 3)
    assert stats[1].shape == (2, 2, 0)
    (out_h.sum() + out_g.sum()).backward()
    assert [len(x) for x in recorder.backward[1:5]] == [1, 1, 1, 1]
    assert len(recorder.backward[5]) == 10  # of one stream, and of nine shared operands
    assert torch.equal(tensors[0].grad, torch.ones_like(q))


@pytest.mark.parametrize(
    ("backend", "shape"),
    [("cpu", (0,)), ("sdpa", (0,)), ("triton", (2, 2, 4)), ("cuda", (2, 2, 4))],
)
def test_statistics_of_a_fake_are_those_of_the_backend(backend, shape):
    problem = small().to(torch.float32)
    args = schema_arguments(problem, 0.0, backend)
    with FakeTensorMode(allow_non_fake_inputs=True):
        out, stats = OPS.rel_attention(problem.operands["q"], *args)
    assert (tuple(stats.shape), stats.dtype) == (shape, torch.float32)
    assert out.shape == problem.operands["q"].shape


def test_an_op_of_an_unknown_backend():
    problem = small()
    with pytest.raises(BackendUnavailable, match="no registered backend 'abacus'"):
        OPS.rel_attention(problem.operands["q"], *schema_arguments(problem, 0.0, "abacus"))
