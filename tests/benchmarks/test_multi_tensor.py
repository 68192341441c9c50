"""How often PyTorch launches for a copy of many tensors, as its source says it."""

import pytest
import torch

from benchmarks.harness.launches import Ledger, fake_gpu
from benchmarks.harness.multi_tensor import CHUNK_ELEMENTS, LIMITS, copy_launches
from benchmarks.micro.memory_launches import CASES, count

CUDA = torch.device("cuda", 0)
BF16 = torch.bfloat16


def tensors(sizes, dtype=torch.float32):
    return [torch.empty(size, dtype=dtype, device="meta") for size in sizes]


@pytest.mark.parametrize("cuda", LIMITS)
def test_a_launch_takes_so_many_tensors_and_so_many_chunks(cuda):
    limits = LIMITS[cuda]
    for sizes, launches in (
        ([1] * limits.tensors, 1),
        ([1] * (limits.tensors + 1), 2),
        ([limits.blocks * CHUNK_ELEMENTS], 1),
        ([limits.blocks * CHUNK_ELEMENTS + 1], 2),
        ([CHUNK_ELEMENTS + 1] * (limits.blocks // 2), 3),  # full of tensors before of blocks
        ([0, 0], 0),
        ([0, 1, 0], 1),
        # The second launch begins within a tensor, which counts among its tensors again.
        ([(limits.blocks + 1) * CHUNK_ELEMENTS] + [1] * (limits.tensors - 1), 2),
        ([(limits.blocks + 1) * CHUNK_ELEMENTS] + [1] * limits.tensors, 3),
    ):
        assert copy_launches(tensors(sizes), tensors(sizes, BF16), cuda) == launches, sizes[:2]


@pytest.mark.parametrize("what", ["dtypes", "layout", "gaps", "shape of one", "device"])
def test_what_is_not_alike_is_copied_one_by_one(what):
    targets, sources = tensors([(4, 3)] * 2), tensors([(4, 3)] * 2)
    assert copy_launches(targets, sources) == 1
    if what == "dtypes":
        sources[1] = sources[1].to(BF16)
    elif what == "layout":
        sources[1] = torch.empty(3, 4, device="meta").t()
    elif what == "gaps":
        targets[1] = sources[1] = torch.empty(4, 6, device="meta")[:, ::2]
    elif what == "shape of one":
        sources[0] = torch.empty(1, 3, device="meta")
    else:
        sources[1] = torch.empty(4, 3)
    assert copy_launches(targets, sources) == 2


def test_transposed_alike_and_dimensions_of_one_stay_together():
    alike = [torch.empty(3, 4, device="meta").t() for _ in range(2)]
    assert copy_launches(alike, alike) == 1
    one = torch.empty(1, 4, device="meta")
    assert copy_launches([one] * 2, [one.as_strided((1, 4), (99, 1))] * 2) == 1


def test_the_ledger_counts_chunks_and_refuses_what_it_does_not_know():
    with fake_gpu(), Ledger(cuda=12) as ledger:
        x = [torch.empty(200 * CHUNK_ELEMENTS, device=CUDA) for _ in range(2)]
        torch._foreach_copy_(x, [torch.empty_like(each) for each in x])
        assert dict(ledger.launches) == {"_foreach_copy_": 2}
        with pytest.raises(LookupError, match="counted the launches of _foreach_add"):
            torch._foreach_add(x, 1.0)


def test_memory_of_all_layers():
    """By hand: 12 layers of 8 x 512 x 768 elements are 576 chunks, 24 of 8 x 512 x 1024 1,536."""
    counts = [(count(case, 12), count(case, 13)) for case in CASES]
    assert counts == [(2, 1), (4, 1), (5, 1), (10, 2)]
    # A memory of another dtype is read by launches of its own.
    assert [count(CASES[1], cuda, torch.float32) for cuda in (12, 13)] == [4, 2]
    assert count(CASES[0], 13, torch.float32) == 1  # none of it is left
