"""The dispatcher and backend ``cuda``: what ``auto`` gives it, and what it leaves to others."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.cuda.memory import why_misaligned
from xlnet_fast.ops import _dispatch
from xlnet_fast.ops._dispatch import CAPABILITIES, OPS, Request, choose

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.fixture
def both_measured(monkeypatch):
    """A world with every kernel, where triton's are measured on 9.0, cuda's on 8.0 and 9.0."""
    monkeypatch.setattr(_dispatch, "_importable", lambda module: True)
    capabilities = tuple(replace(capability, obstacle=None) for capability in CAPABILITIES)
    monkeypatch.setattr(_dispatch, "CAPABILITIES", capabilities)
    monkeypatch.setitem(_dispatch.MEASURED_GPUS, "triton", ("9.0",))
    monkeypatch.setitem(_dispatch.MEASURED_GPUS, "cuda", ("8.0", "9.0"))


MISALIGNED = "k: its last dimension has stride 2, expected 1; .contiguous() mends it"
ON_BOTH = [
    # what cuda runs where it is measured, and what triton, sdpa or the reference are left with
    (Request("rel_attention", "cuda", BF16, 64, False, "9.0"), "cuda", "first choice here"),
    (Request("rel_attention", "cuda", F16, 8, True, "9.0"), "cuda", "first choice here"),
    (Request("two_stream_attention", "cuda", BF16, 128, True, "8.0"), "cuda", "first choice here"),
    (Request("masked_softmax", "cuda", F32, 64, True, "9.0"), "cuda", "first choice here"),
    (Request("concat_memory", "cuda", F32, 64, False, "8.0"), "cuda", "first choice here"),
    (
        Request("rel_attention", "cuda", BF16, 64, False, "8.9"), "sdpa",
        "cuda: no measurement on compute capability 8.9 yet; ask for it with backend='cuda'",
    ),
    (
        Request("rel_attention", "cuda", F32, 64, False, "9.0"), "triton",
        "cuda: it takes float16, bfloat16, not float32",
    ),
    (
        Request("two_stream_attention", "cuda", F32, 64, False, "9.0"), "triton",
        "cuda: it takes float16, bfloat16, not float32",
    ),
    (
        Request("masked_softmax", "cuda", F64, 64, False, "9.0"), "sdpa",
        "cuda: it takes float16, bfloat16, float32, not float64",
    ),
    (
        Request("rel_attention", "cuda", BF16, 20, False, "9.0"), "triton",
        "cuda: it takes head dims in steps of 8, not 20",
    ),
    (
        Request("rel_attention", "cuda", BF16, 4, False, "9.0"), "sdpa",
        "cuda: it takes head dims 8 to 128, not 4",
    ),
    (
        Request("rel_attention", "cuda", BF16, 136, False, "9.0"), "sdpa",
        "cuda: it takes head dims 8 to 128, not 136",
    ),
    (
        Request("rel_attention", "cuda", BF16, 64, False, "9.0", MISALIGNED), "triton",
        f"cuda: it cannot read {MISALIGNED}",
    ),
    (
        Request("rel_attention", "cpu", BF16, 64, False, None), "cpu",
        "cuda: it runs on cuda, not on cpu",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "expected", "reason"), ON_BOTH)
@pytest.mark.usefixtures("both_measured")
def test_auto_takes_the_cuda_kernels_before_those_of_triton(request_, expected, reason):
    choice = choose(request_)
    assert choice.backend == expected
    assert choice.reason.startswith(reason)


@pytest.mark.parametrize(("request_", "expected", "reason"), ON_BOTH)
@pytest.mark.usefixtures("both_measured")
def test_the_cuda_kernels_by_name_run_or_say_why_not(request_, expected, reason):
    if expected == "cuda" or "no measurement" in reason:
        choice = choose(request_, "cuda")
        assert (choice.backend, choice.reason) == ("cuda", "asked for by name")
        return
    why = reason.removeprefix("cuda: ")
    with pytest.raises(BackendUnavailable, match=f"{request_.op}: {re.escape(why)}$"):
        choose(request_, "cuda")


@pytest.mark.parametrize("gpu", ["8.0", "9.0", "10.0", None])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("both_measured")
def test_auto_takes_the_cuda_kernels_only_where_they_are_listed(op, gpu, monkeypatch):
    monkeypatch.setitem(_dispatch.MEASURED_GPUS, "triton", ("9.0", "10.0"))
    expected = {"8.0": "cuda", "9.0": "cuda", "10.0": "triton", None: "sdpa"}
    assert choose(Request(op, "cuda", BF16, gpu=gpu)).backend == expected[gpu]


@pytest.mark.usefixtures("both_measured")
def test_kernels_that_are_not_compiled_are_an_obstacle(monkeypatch):
    capabilities = tuple(
        replace(c, obstacle=lambda: "nobody compiled them") if c.name == "cuda" else c
        for c in CAPABILITIES
    )
    monkeypatch.setattr(_dispatch, "CAPABILITIES", capabilities)
    request = Request("rel_attention", "cuda", BF16, gpu="9.0")
    assert choose(request) == _dispatch.Choice("triton", "cuda: nobody compiled them")
    with pytest.raises(BackendUnavailable, match="nobody compiled them"):
        choose(request, "cuda")


@pytest.mark.usefixtures("both_measured")
def test_rows_are_looked_at_where_the_cuda_kernels_may_be_chosen(monkeypatch):
    monkeypatch.setattr(_dispatch, "gpu_of", lambda x: "9.0")
    good, bad = torch.zeros(2, 3, 1, 8), torch.zeros(2, 3, 1, 16)[..., ::2]
    expected = f"bad: {MISALIGNED.removeprefix('k: ')}"
    operands = {"good": good, "none": None, "empty": bad[:0], "bad": bad, "worse": bad}
    for backend in ("cuda", "auto"):
        assert _dispatch.misalignment_of(operands, backend) == expected
        assert _dispatch.misalignment_of({"good": good}, backend) is None
    for backend in ("triton", "sdpa", "reference", "nonsense"):
        assert _dispatch.misalignment_of(operands, backend) is None
    monkeypatch.setattr(_dispatch, "gpu_of", lambda x: "8.9")
    assert _dispatch.misalignment_of(operands, "auto") is None
    assert _dispatch.misalignment_of(operands, "cuda") == expected
    monkeypatch.setitem(_dispatch.MEASURED_GPUS, "cuda", ())
    assert _dispatch.misalignment_of(operands, "auto") is None


def test_rows_that_begin_where_pieces_cannot_be_read():
    x = torch.zeros(2, 3, 2, 16, dtype=BF16)
    assert why_misaligned(x) is None
    assert why_misaligned(x[:, 1:, :, 8:]) is None
    assert why_misaligned(x.transpose(1, 2)[:1, ::2]) is None
    assert why_misaligned(x[:, :, :1, :1]) is None  # the stride of a single element is not used
    assert why_misaligned(torch.zeros(2, 1, 1, 20)[:1, ..., :8]) is None
    for rows in (x[..., 4:], torch.zeros(2, 3, 2, 18, dtype=BF16)[..., :16], x.mT):
        assert "16 bytes" in why_misaligned(rows) or "stride" in why_misaligned(rows)
    assert why_misaligned(torch.zeros(2, 3, 2, 20)) is None  # 80 bytes of fp32
    assert "16 bytes" in why_misaligned(torch.zeros(2, 3, 2, 20, dtype=BF16))
