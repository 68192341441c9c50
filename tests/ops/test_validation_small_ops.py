"""Bad input to masked softmax and to memory: each error names the argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xlnet_fast import ops
from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError
from xlnet_fast.masks import AttentionMask

BACKENDS = ["auto", "sdpa", "reference"]


# --- masked_softmax ------------------------------------------------------------------------------


def softmax(**changes: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {
        "scores": torch.zeros(4, 2, 5, 8),
        "position_scores": torch.zeros(4, 2, 5, 13),
        "segment_scores": torch.zeros(4, 2, 5),
        "segments_q": torch.zeros(4, 5, dtype=torch.int64),
        "segments_k": torch.zeros(4, 8, dtype=torch.int64),
        "mask": AttentionMask(key_padding=torch.zeros(4, 8, dtype=torch.bool)),
    }
    return ops.masked_softmax(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scores": None}, ArgumentError, "scores must be a tensor"),
        ({"scores": torch.zeros(4, 2, 5)}, ShapeError, "scores has shape .* 4 dimensions"),
        ({"scores": torch.zeros(4, 2, 5, 8).long()}, ArgumentError, "scores has dtype torch.int64"),
        ({"scores": torch.zeros(4, 2, 9, 8)}, ShapeError, "memory_length is -1"),
        ({"position_scores": torch.zeros(4, 2, 13)}, ShapeError, "position_scores has shape"),
        ({"position_scores": torch.zeros(4, 2, 4, 13)}, ShapeError, "position_scores has shape"),
        ({"position_scores": torch.zeros(4, 2, 5, 12)}, ShapeError, "expected at least 13 = L"),
        ({"position_scores": torch.zeros(4, 2, 5, 13).half()}, ArgumentError, "position_scores"),
        ({"segment_scores": torch.zeros(4, 2, 6)}, ShapeError, "segment_scores has shape"),
        ({"segment_scores": None}, ShapeError, "given together"),
        ({"segments_q": None}, ShapeError, "given together"),
        ({"segments_q": torch.zeros(4, 6).long()}, ShapeError, "segments_q has shape"),
        ({"segments_k": torch.zeros(4, 8)}, ArgumentError, "segments_k has dtype torch.float32"),
        ({"positions": torch.zeros(4, 4).long()}, ShapeError, "positions has shape"),
        ({"positions": torch.full((4, 5), 5)}, ArgumentError, "positions reach 5"),
        ({"memory_length": 2}, ShapeError, r"scores has 8 keys, expected M \+ I = 2 \+ 5"),
        (
            {"memory_length": 9, "positions": torch.zeros(4, 5).long()},
            ShapeError,
            "memory_length is 9, expected 0 to J = 8",
        ),
        ({"mask": torch.zeros(4, 5, 8)}, ArgumentError, "mask must be an AttentionMask"),
        (
            {"mask": AttentionMask(key_padding=torch.zeros(4, 8, dtype=torch.bool, device="meta"))},
            ArgumentError,
            "mask.key_padding is on meta",
        ),
        ({"mask": AttentionMask(same_length=True)}, ShapeError, "causal=True"),
        ({"dropout_p": 0.5}, ArgumentError, "needs seed"),
        ({"backend": "nope"}, ArgumentError, "unknown backend 'nope'"),
        ({"backend": "triton"}, BackendUnavailable, "it runs on cuda, not on cpu"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_softmax_arguments(changes, error, message, backend):
    with pytest.raises(error, match=message):
        softmax(**{"backend": backend, **changes})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (4, 2, 0, 8), (4, 0, 5, 8)])
def test_masked_softmax_of_nothing(backend, shape):
    scores = torch.zeros(shape, requires_grad=True)
    out = ops.masked_softmax(scores, backend=backend)
    assert out.shape == shape
    out.sum().backward()
    assert scores.grad.shape == shape


# --- concat_memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_concat_memory_arguments(backend):
    hidden, memory = torch.zeros(4, 2, 3), torch.zeros(5, 2, 3)

    def call(*args: Any) -> torch.Tensor:
        return ops.concat_memory(*args, backend=backend)

    with pytest.raises(ShapeError, match=r"hidden has shape \(4, 2\), expected 3 dimensions"):
        call(hidden[..., 0])
    with pytest.raises(ShapeError, match=r"memory has shape \(5, 1, 3\), expected \(5, 2, 3\)"):
        call(hidden, memory[:, :1])
    with pytest.raises(ShapeError, match=r"memory has shape .*3 dimensions"):
        call(hidden, memory[0])
    with pytest.raises(ArgumentError, match=r"memory has dtype torch.int64, expected a floating"):
        call(hidden, memory.long())
    with pytest.raises(ArgumentError, match="memory is on meta, expected"):
        call(hidden, memory.to("meta"))
    with pytest.raises(ArgumentError, match="mem_len is -1, expected"):
        call(hidden, memory, -1)
    with pytest.raises(ArgumentError, match="reuse_len is -2, expected"):
        call(hidden, memory, None, -2)
    with pytest.raises(ArgumentError, match="hidden must be a tensor"):
        call(None)
    with pytest.raises(ArgumentError, match="memory must be a tensor"):
        call(hidden, [memory])
    with pytest.raises(ArgumentError, match=r"hidden has dtype torch.int64, expected a floating"):
        call(hidden.long())
    for empty in (torch.zeros(0, 2, 3), torch.zeros(4, 0, 3)):
        assert torch.equal(call(empty), empty)
    with pytest.raises(BackendUnavailable, match="it runs on cuda, not on cpu"):
        ops.concat_memory(hidden, backend="triton")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h, m: (h[0], m), ArgumentError, "hidden must be a list of tensors, .* got Tensor"),
        (lambda h, m: (h, m[0]), ArgumentError, "memory must be a list of tensors"),
        (lambda h, m: ([], None), ArgumentError, "hidden is empty, expected one tensor per layer"),
        (lambda h, m: (h, m[1:]), ShapeError, "memory has 1 layers, expected 2"),
        (lambda h, m: ([h[0], h[1][1:]], m), ShapeError, r"hidden\[1\] .*\(3, 2, 3\), expected"),
        (lambda h, m: (h, [m[0], m[1][1:]]), ShapeError, r"memory\[1\] has shape \(4, 2, 3\)"),
        (lambda h, m: ([h[0], h[1].double()], m), ArgumentError, r"hidden\[1\] has dtype torch.fl"),
        (lambda h, m: (h, [m[0], m[1].half()]), ArgumentError, r"memory\[1\] has dtype torch.fl"),
        (lambda h, m: ([h[0], h[1].to("meta")], None), ArgumentError, r"hidden\[1\] is on meta"),
        (lambda h, m: (h, [m[0], m[1].to("meta")]), ArgumentError, r"memory\[1\] is on meta"),
        (lambda h, m: (h, [m[0], None]), ArgumentError, r"memory\[1\] must be a tensor"),
        (lambda h, m: (h, [x[:, :1] for x in m]), ShapeError, r"memory\[0\] has shape \(5, 1, 3\)"),
        (lambda h, m: (h, m, -1), ArgumentError, "mem_len is -1, expected"),
    ],
)  # fmt: skip
def test_concat_memories_arguments(change, error, message, backend):
    hidden, memory = [torch.zeros(4, 2, 3)] * 2, [torch.zeros(5, 2, 3)] * 2
    with pytest.raises(error, match=message):
        ops.concat_memories(*change(hidden, memory), backend=backend)
