"""Backend ``sdpa`` on a GPU against Hugging Face: launches, peak memory, synchronisations, counted.

The real code runs on fake CUDA tensors (benchmarks/harness/launches.py), at the full sizes.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.harness.launches import Ledger, fake_gpu
from benchmarks.micro.sdpa_launches import CASES, Case, Count, count_attention, count_layer
from xlnet_fast import ops, philox
from xlnet_fast.kernels.sdpa import budget, few_launches
from xlnet_fast.masks import AttentionMask, pack_bits, unpack_bits
from xlnet_fast.ops._contracts import keep_mask

layer = cache(count_layer)
attention = cache(count_attention)
LARGE = CASES[1:]


CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def as_it_would_be(poisoned_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No filling of new memory, which counts; and Triton, which a fake GPU does not need."""
    monkeypatch.undo()
    monkeypatch.setattr(keep_mask, "_has_triton", lambda: True)


def both(count, case: Case, train: bool) -> tuple[Count, Count]:
    return count("hf", case, train), count("sdpa", case, train)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_layer_in_inference_launches_no_more_than_eager(case):
    theirs, ours = both(layer, case, False)
    assert 25 < ours.forward <= theirs.forward
    assert ours.synchronisations == ()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_layer_in_training_launches_at_most_half_as_much_again(case):
    theirs, ours = both(layer, case, True)
    assert ours.forward < ours.total <= 1.5 * theirs.total
    assert ours.synchronisations == ()


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_peak_memory_is_at_most_half_of_eagers(case, train):
    theirs, ours = both(attention, case, train)
    scores = case.batch * case.heads * case.length**2 * case.dtype.itemsize
    assert scores < ours.peak_bytes <= theirs.peak_bytes / 2
    theirs, ours = both(layer, case, train)  # with everything else that the model has
    assert ours.peak_bytes <= theirs.peak_bytes / 2


def test_peak_memory_where_operands_outweigh_scores():
    """At 1x128 no attention holds half: the operands and their gradients alone are more."""
    theirs, ours = both(attention, CASES[0], False)
    assert ours.peak_bytes <= 0.65 * theirs.peak_bytes
    theirs, ours = both(layer, CASES[0], True)
    assert ours.peak_bytes <= 1.05 * theirs.peak_bytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_dtypes_launch_as_little(dtype):
    for sizes in (CASES[0], CASES[2]):
        case = Case(sizes.batch, sizes.length, sizes.heads, dtype=dtype)
        theirs, ours = both(count_attention, case, False)
        assert ours.total <= theirs.total + 2  # what a layer saves elsewhere
        assert ours.peak_bytes <= 0.65 * theirs.peak_bytes


@pytest.mark.parametrize("extras", [False, True])
def test_launches_are_independent_of_the_length(extras):
    counts = {
        count_attention("sdpa", Case(1, length, 12, extras), False).total for length in (512, 8192)
    }
    assert len(counts) == 1


def test_small_blocks_show(monkeypatch):
    """What these tests are to catch: chunks for a CPU's caches."""
    monkeypatch.setattr(budget, "scores", lambda device, size: 2**24)
    ours = count_attention("sdpa", CASES[2], False)
    assert ours.total > 4 * attention("sdpa", CASES[2], False).total
    monkeypatch.setattr(budget, "scores", lambda device, size: 2**30)
    monkeypatch.setattr(few_launches, "PARTS", 1)
    ours, theirs = (count_attention(kind, CASES[3], False) for kind in ("sdpa", "hf"))
    assert ours.peak_bytes > theirs.peak_bytes / 2


# --- nothing waits for the GPU --------------------------------------------------------------------


MASKS = ("padding", "ranks", "bits", "causal")


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long, device=CUDA)


def masks(batch: int, rows: int, keys: int) -> dict[str, AttentionMask]:
    padding = torch.zeros(batch, keys, dtype=torch.bool, device=CUDA)
    ranks = {"rank_q": zeros(batch, rows), "rank_k": zeros(batch, keys)}
    bits = torch.zeros(batch, rows, (keys + 7) // 8, dtype=torch.uint8, device=CUDA)
    return {
        "padding": AttentionMask(key_padding=padding, see_self=True),
        "ranks": AttentionMask(padding, **ranks, see_self=True),
        "bits": AttentionMask(bits=bits, see_self=True),
        "causal": AttentionMask(causal=True, same_length=True),
    }


@pytest.mark.parametrize("name", MASKS)
def test_two_streams_with_memory_wait_for_nothing(name):
    batch, rows, memory, heads = 2, 24, 8, 4
    keys = rows + memory
    with fake_gpu(), Ledger() as ledger, torch.no_grad():

        def operand(*shape: int) -> Tensor:
            return torch.empty(*shape, heads, 16, dtype=torch.float16, device=CUDA)

        segments = zeros(batch, keys)
        outs = ops.two_stream_attention(
            operand(batch, rows), operand(batch, 5), operand(batch, rows), operand(batch, rows),
            operand(2, keys + rows), operand(), operand(), k_memory=operand(batch, memory),
            v_memory=operand(batch, memory), r_s_bias=operand(), seg_embed=operand(2),
            segments=segments, mask=masks(batch, rows, keys)[name],
            positions=zeros(batch, 5), dropout_p=0.1,
            seed=zeros(1), backend="sdpa",
        )  # fmt: skip
    assert [out.shape[1] for out in outs] == [rows, 5]
    assert ledger.synchronisations == []


def test_visible_attention_and_bits_wait_for_nothing():
    with fake_gpu(), Ledger() as ledger:
        scores = torch.empty(4, 2, 8, 8, device=CUDA)
        with torch.no_grad():
            ops.masked_softmax(
                scores, mask=masks(4, 8, 8)["bits"], dropout_p=0.1,
                seed=zeros(1), backend="sdpa",
            )  # fmt: skip
        unpack_bits(pack_bits(zeros(2, 3, 9) > 0), 9)
    assert ledger.synchronisations == []
    assert ledger.launches["xlnet_fast.keep_mask.default"] == 1
    assert ledger.total < 60


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (lambda x: torch.tensor([1.0, 2.0], device="cpu").to(x.device), "aten._to_copy.default"),
        (lambda x: x.cpu(), "aten._to_copy.default"),
        (lambda x: x.copy_(torch.ones(3, device="cpu")), "aten.copy_.default"),
        (lambda x: x + torch.ones((), device="cpu"), None),
        (lambda x: torch.equal(x, x), "aten.equal.default"),
    ],
)
def test_the_ledger_sees_what_waits(act, name):
    with fake_gpu(), Ledger() as ledger:
        x = torch.empty(3, device=CUDA)
        try:
            act(x)
        except RuntimeError:  # a fake tensor cannot answer
            assert name == "aten.equal.default"
            return
    assert ledger.synchronisations == ([] if name is None else [name])


def test_the_ledger_counts_what_is_alive_at_once():
    with fake_gpu(), Ledger() as ledger:
        x = torch.empty(1000, dtype=torch.uint8, device=CUDA)
        y = x + 1
        view = y[10:]
        del x, y
        x = view + 1
        del x, view
        torch.empty(500, dtype=torch.uint8, device=CUDA)
    assert ledger.peak_bytes == 1000 + 1000
    assert dict(ledger.launches) == {"add": 2}


# --- dropout's mask -------------------------------------------------------------------------------


def test_a_mask_on_a_gpu_is_one_launch():
    with fake_gpu(), Ledger() as ledger:
        seed = torch.empty(1, dtype=torch.long, device=CUDA)
        mask = philox.keep_mask(seed, 0.1, 4, 3, (2, 9), 33, batch_range=(1, 3))
    assert mask.shape == (2, 3, 7, 33)
    assert mask.dtype == torch.bool
    assert ledger.total == 1 == ledger.launches["xlnet_fast.keep_mask.default"]
