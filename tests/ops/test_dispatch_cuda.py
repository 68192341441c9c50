"""The dispatcher and backend ``cuda``: what ``auto`` gives it, and what it leaves to others."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.cuda.memory import why_misaligned
from xlnet_fast.ops import _dispatch
from xlnet_fast.ops._dispatch import CAPABILITIES, Request, choose, request_for

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.fixture
def both_measured(monkeypatch):
    """A world with every kernel."""
    monkeypatch.setattr(_dispatch, "_importable", lambda module: True)
    capabilities = tuple(replace(capability, obstacle=None) for capability in CAPABILITIES)
    monkeypatch.setattr(_dispatch, "CAPABILITIES", capabilities)


def both(op, dtype, head_dim=64, needs_grad=False, misaligned=None, **speeds):
    """A request on a GPU whose record calls both kernels right, cuda's the faster."""
    speeds = speeds or {"cuda": 3.0, "triton": 2.0}
    rows = tuple((name, True, speed, f"{speed} times") for name, speed in speeds.items())
    request = Request(op, "cuda", dtype, head_dim, needs_grad, "9.0", misaligned)
    return replace(request, proved=rows)


MISALIGNED = "k: its last dimension has stride 2, expected 1; .contiguous() mends it"
ON_BOTH = [
    # what cuda runs where it is proved, and what triton, sdpa or the reference are left with
    (both("rel_attention", BF16), "cuda", "3.0 times"),
    (both("rel_attention", F16, 8, True), "cuda", "3.0 times"),
    (both("two_stream_attention", BF16, 128, True), "cuda", "3.0 times"),
    (both("masked_softmax", F32, 64, True), "cuda", "3.0 times"),
    (both("concat_memory", F32), "cuda", "3.0 times"),
    (
        both("rel_attention", BF16, triton=2.0), "triton",
        "cuda: no such call in this machine's record",
    ),
    (both("rel_attention", F32), "triton", "cuda: it takes float16, bfloat16, not float32"),
    (both("two_stream_attention", F32), "triton", "cuda: it takes float16, bfloat16, not float32"),
    (
        both("masked_softmax", F64), "sdpa",
        "cuda: it takes float16, bfloat16, float32, not float64",
    ),
    (both("rel_attention", BF16, 20), "triton", "cuda: it takes head dims in steps of 8, not 20"),
    (both("rel_attention", BF16, 4), "sdpa", "cuda: it takes head dims 8 to 128, not 4"),
    (both("rel_attention", BF16, 136), "sdpa", "cuda: it takes head dims 8 to 128, not 136"),
    (
        both("rel_attention", BF16, misaligned=MISALIGNED), "triton",
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
    assert reason in choice.reason.split("; ", 1)[expected == "triton"]


@pytest.mark.parametrize(("request_", "expected", "reason"), ON_BOTH)
@pytest.mark.usefixtures("both_measured")
def test_the_cuda_kernels_by_name_run_or_say_why_not(request_, expected, reason):
    if expected == "cuda" or "record" in reason:
        choice = choose(request_, "cuda")
        assert (choice.backend, choice.reason) == ("cuda", "asked for by name")
        return
    why = reason.removeprefix("cuda: ")
    with pytest.raises(BackendUnavailable, match=f"{request_.op}: {re.escape(why)}$"):
        choose(request_, "cuda")


@pytest.mark.usefixtures("both_measured")
def test_kernels_that_are_not_compiled_are_an_obstacle(monkeypatch):
    capabilities = tuple(
        replace(c, obstacle=lambda: "nobody compiled them") if c.name == "cuda" else c
        for c in CAPABILITIES
    )
    monkeypatch.setattr(_dispatch, "CAPABILITIES", capabilities)
    request = both("rel_attention", BF16)
    assert choose(request).reason == "2.0 times; cuda: nobody compiled them"
    with pytest.raises(BackendUnavailable, match="nobody compiled them"):
        choose(request, "cuda")


def test_rows_are_looked_at_where_the_cuda_kernels_may_be_chosen(monkeypatch):
    good, bad = torch.zeros(2, 3, 1, 8), torch.zeros(2, 3, 1, 16)[..., ::2]
    expected = f"bad: {MISALIGNED.removeprefix('k: ')}"
    operands = {"good": good, "none": None, "empty": bad[:0], "bad": bad, "worse": bad}
    found: list[tuple[str, bool, float | None, str]] = []
    monkeypatch.setattr(_dispatch.proof, "why_none", lambda *device: "")
    monkeypatch.setattr(_dispatch.proof, "verdicts", lambda *key: tuple(found))

    def misaligned(backend, rows=operands):
        return request_for("rel_attention", good, rows=rows, backend=backend).misaligned

    assert misaligned("cuda") == expected
    assert misaligned("cuda", {"good": good}) is None
    for backend in ("triton", "sdpa", "reference", "nonsense", "auto"):
        assert misaligned(backend) is None
    found.append(("cuda", True, 2.0, "twice"))
    assert misaligned("auto") == expected
    assert misaligned("auto", {"good": good}) is None
    assert misaligned("triton") is None


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
