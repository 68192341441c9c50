"""The CUDA C++ kernels of masked_softmax and concat_memory: emulated, and on a GPU where one is.

The cases are in `small_ops.py`.
"""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest
import torch
from cuda_emulation import device, emulation, emulation_module
from small_ops import (
    CASES,
    MEMORY,
    MEMORY_WIDTHS,
    REFUSED,
    REFUSED_MEMORY,
    Case,
    by_reference,
    check_case,
    check_keep,
    check_memory,
    check_refused,
    check_refused_memory,
    launch,
    make_inputs,
)

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.cuda import concat_memory, masked_softmax, why_unavailable
from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import SoftmaxInputs
from xlnet_fast.philox import keep_mask, philox4x32
from xlnet_fast.tolerance import assert_within

__all__ = ["device", "emulation", "emulation_module"]  # fixtures

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize(
    "dtype", DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in DTYPES]
)
IN_REGISTERS = 1024
"""Keys of the longest row that is read once."""
LENGTHS = (1, 7, 8, 9, 96, 255, 256, 257, 512, 520, 1023, 1024, 1025, 1600)
"""Keys in all: about a piece, every number of pieces that a lane holds, tiles of a long row."""


def of_this_backend(case: Case) -> Case:
    """A row too long for the registers is one of more than 1024 keys; fewer rows make up for it."""
    if not case.sweeps:
        return case
    rows = min(case.rows, 9)
    current = None if case.current is None else case.current
    return replace(case, rows=rows, current=current, memory=case.memory + IN_REGISTERS)


@each_dtype
@pytest.mark.parametrize("name", CASES)
def test_softmax(name, dtype, device):
    check_case(name, dtype, masked_softmax, device, of_this_backend(CASES[name]))


@each_dtype
@pytest.mark.parametrize("keys", LENGTHS)
def test_softmax_of_every_length(keys, dtype, device):
    rows = min(keys, 5)
    case = Case(rows=rows, memory=keys - rows, segments=True, mask=("padding", "ranks", "bits"))
    check_case("masks-every", dtype, masked_softmax, device, case)


@each_dtype
@pytest.mark.parametrize("name", ["masks-every-self", "masks-every-sweeps", "shapes-uni"])
def test_softmax_whatever_the_order_of_warps(name, dtype, emulation):
    emulation.set_downwards(True)
    check_case(name, dtype, masked_softmax, "cpu", of_this_backend(CASES[name]))


@pytest.mark.parametrize("keys", [97, 1025])
def test_dropout_keeps_what_the_generator_says(keys, device):
    check_keep(masked_softmax, device, keys)


def test_a_word_at_the_threshold_is_kept(device):
    zero, seed = torch.tensor(0), 0x7EAD_BEEF_0123_4567
    words = philox4x32((zero, zero, zero, zero), (seed & 0xFFFFFFFF, seed >> 32))
    scores = torch.zeros(1, 1, 1, 4, device=device)
    mask, seed = AttentionMask(), torch.tensor(seed, device=device)
    for number, word in enumerate(words):
        out = torch.empty_like(scores)
        p = int(word) / 2**32
        inputs = SoftmaxInputs(scores, None, None, None, None, mask, None, 3, 1.0, p, seed)
        masked_softmax.masked_softmax_forward(inputs, out)
        assert torch.equal(out.flatten().cpu() != 0, torch.stack(words) >= words[number])


@each_dtype
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("keys", [23, 1040])
def test_nan_in_a_visible_score_fills_its_row(bad, keys, dtype, device):
    """A diverging model must show: a finite row in the place of NaN would hide it."""
    scores = torch.randn(1, 2, 3, keys).to(dtype).to(device)
    scores[0, 1, 2, 11] = bad
    out = torch.empty_like(scores)
    mask = AttentionMask()
    inputs = SoftmaxInputs(scores, None, None, None, None, mask, None, keys - 3, 1.0)
    masked_softmax.masked_softmax_forward(inputs, out)
    assert out[0, 1, 2].isnan().all()
    out[0, 1, 2] = 0
    assert out.isfinite().all()


@each_dtype
def test_positions_beyond_the_segment(dtype, device):
    """No caller may give them, and a GPU does not look: their first keys have no position score."""
    case = Case(memory=9, current=33, positions="any", segments=True, mask=("ranks",))
    x = make_inputs(case, dtype, seed=0)
    x.positions += 20
    exact, eager = by_reference(x, torch.float64), by_reference(x, dtype)
    for name, value in launch(x, case, masked_softmax, device).items():
        assert_within(value, eager[name], exact[name], name)


@each_dtype
def test_positions_beyond_32_bits_of_arithmetic(dtype, device):
    """Clamped: such a row meets no column of the table, and a causal mask shows or hides all."""
    scores = torch.randn(1, 1, 2, 40).to(dtype).to(device)
    table = torch.full((1, 1, 2, 60), float("nan"), dtype=dtype, device=device)
    positions = torch.tensor([[-(2**31), 2**31 - 1]], dtype=torch.int32, device=device)
    out = torch.empty_like(scores)
    mask = AttentionMask(causal=True)
    inputs = SoftmaxInputs(scores, table, None, None, None, mask, positions, 20, 1.0)
    masked_softmax.masked_softmax_forward(inputs, out)
    expected = torch.full((40,), 1 / 40, dtype=dtype)
    assert torch.equal(out[0, 0, 0].cpu(), expected)
    right = scores[0, 0, 1].float().softmax(-1).to(dtype)
    torch.testing.assert_close(out[0, 0, 1], right)
    grads = [torch.empty_like(scores), torch.empty_like(table), scores.new_empty(0)]
    masked_softmax.masked_softmax_backward(inputs, out, torch.randn_like(scores), grads)
    assert grads[0].isfinite().all()
    assert (grads[1] == 0).all()


def untouched_zeros(count: int, device: str) -> torch.Tensor:
    """Half precision zeros, on a CPU pages that cost nothing until they are written."""
    if device == "cpu":
        return torch.frombuffer(mmap.mmap(-1, 2 * count), dtype=torch.float16)
    return torch.zeros(count, dtype=torch.float16, device=device)


@pytest.mark.parametrize("far", ["batch", "head", "row"])
def test_more_than_2_to_the_31_elements_apart(far, device, much_memory):
    """Offsets need 64 bits. The memory between is zeros that nobody touches."""
    shape = [2 if far == name else 1 for name in ("batch", "head", "row")]
    strides = [2**31 if far == name else 0 for name in ("batch", "head", "row")]
    scores, table, out = (
        untouched_zeros(2**31 + 32, device).as_strided((*shape, 16), (*strides, 1))
        for _ in range(3)
    )
    scores.copy_(torch.randn(scores.shape))
    table.copy_(torch.randn(scores.shape))
    positions = torch.full((shape[0], shape[2]), 16, device=device)
    inputs = SoftmaxInputs(scores, table, None, None, None, AttentionMask(), positions, 0, 1.0)
    masked_softmax.masked_softmax_forward(inputs, out)
    expected = (scores.float() + table.float()).softmax(-1)
    torch.testing.assert_close(out.float(), expected, atol=1e-3, rtol=0)


@pytest.mark.gpu
def test_a_graph_captures_them():
    """Nothing waits for the GPU, and the seed is read when the graph runs."""
    if (reason := why_unavailable(torch.device("cuda", 0))) is not None:
        pytest.skip(reason)
    scores, seed = torch.zeros(2, 2, 6, 10, device="cuda"), torch.tensor([3], device="cuda")
    mask = AttentionMask()
    inputs = SoftmaxInputs(scores, None, None, None, None, mask, None, 4, 1.0, 0.3, seed)
    hidden, out = [torch.randn(6, 2, 8, device="cuda")], torch.zeros(1, 6, 2, 8, device="cuda")
    probabilities = torch.zeros_like(scores)
    grads = [torch.zeros_like(scores), scores.new_empty(0), scores.new_empty(0)]

    def step() -> None:
        masked_softmax.masked_softmax_forward(inputs, probabilities)
        masked_softmax.masked_softmax_backward(inputs, probabilities, scores + 1, grads)
        concat_memory.concat_memory_forward(hidden, None, 0, 6, out)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    seed.fill_(5)
    graph.replay()
    keep = keep_mask(torch.tensor(5), 0.3, 2, 2, (0, 6), 10)
    assert torch.equal(probabilities.cpu() != 0, keep)
    assert torch.equal(out[0], hidden[0])


@each_dtype
@pytest.mark.parametrize("widths", MEMORY_WIDTHS)
@pytest.mark.parametrize("name", MEMORY)
def test_memory(name, dtype, widths, device):
    check_memory(name, widths, dtype, dtype, concat_memory, device)


@each_dtype
@pytest.mark.parametrize("from_", DTYPES, ids=str)
@pytest.mark.parametrize("widths", MEMORY_WIDTHS)
@pytest.mark.parametrize("name", ["memory-last", "memory-reuse"])
def test_memory_converted(name, dtype, from_, widths, device):
    check_memory(name, widths, dtype, from_, concat_memory, device)


@pytest.mark.parametrize("from_", DTYPES, ids=str)
def test_memory_of_several_blocks(from_, device):
    """More elements than a block copies, from addresses that are no multiple of 16 bytes."""
    hidden = [torch.randn(40, 3, 171).to(device) for _ in range(2)]
    memory = [torch.randn(50, 3, 171).to(from_).to(device) for _ in range(2)]
    out = torch.empty(2, 60, 3, 171, device=device)
    concat_memory.concat_memory_forward(hidden, memory, 29, 39, out)
    for layer in range(2):
        expected = torch.cat([memory[layer].float(), hidden[layer][:39]])[29:]
        assert torch.equal(out[layer], expected)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, emulation):
    check_refused(name, masked_softmax)


@pytest.mark.parametrize("name", REFUSED_MEMORY)
def test_refused_memory(name, emulation):
    check_refused_memory(name, concat_memory)


def test_memory_of_doubles_is_refused(emulation):
    hidden = [torch.zeros(4, 2, 4, dtype=torch.float64)]
    with pytest.raises(ArgumentError, match=r"not torch\.float64"):
        concat_memory.concat_memory_forward(hidden, None, 0, 4, torch.stack(hidden))


def test_sizes_beyond_the_kernels_numbers_are_refused(emulation):
    scores = torch.zeros(1).expand(1, 1, 1, 2**29)
    inputs = SoftmaxInputs(scores, None, None, None, None, AttentionMask(), None, 0, 1.0)
    with pytest.raises(ArgumentError, match="up to 2147483647 rows of up to 536870911 scores"):
        masked_softmax.masked_softmax_forward(inputs, scores)


ENTRIES = {
    # the field, its value, the message
    "batch": (0, "batch, heads, rows and keys must be positive"),
    "rows": (2**31, "batch . heads . rows must be below 2..31"),
    "keys": (2**29, "keys and table must be below 2..29"),
    "memory": (9, "0 <= memory <= keys"),
    "scores": (None, "scores must not be null"),
    "segments_q": (64, "must be given together"),
    "rank_k": (64, "rank_q and rank_k belong together"),
    "dropout": (True, "dropout needs seed_at"),
    "out": (None, "out must not be null"),
    "spelling": (1, "a field has no such name"),
}


@pytest.mark.parametrize("field", ENTRIES)
def test_refused_by_the_compiled_entry(field, emulation):
    value, message = ENTRIES[field]
    sizes = {"batch": 1, "heads": 1, "rows": 1, "keys": 8, "memory": 0}
    arguments = {**sizes, "scores": (64,), "out": (64,), field: value}
    with pytest.raises(ValueError, match=message):
        emulation.cuda_masked_softmax_forward(arguments, 0)


@pytest.mark.parametrize("wanting", ["d_out", "d_scores", "d_position_scores"])
def test_a_gradient_without_its_place_is_refused_by_the_compiled_entry(wanting, emulation):
    names = ("scores", "position_scores", "d_out", "d_scores", "d_position_scores")
    arguments = {"batch": 1, "heads": 1, "rows": 1, "keys": 8, "table": 8}
    arguments |= {name: (64,) for name in names if name != wanting}
    with pytest.raises(ValueError, match=r"d_out must not|needs its gradient, and no other"):
        emulation.cuda_masked_softmax_backward(arguments, 0)


@pytest.mark.parametrize(
    "change", [{"hidden": []}, {"memory": [64, 64]}, {"count": 0}, {"first": -1}, {"out": None}]
)
def test_a_wrong_copy_is_refused_by_the_compiled_entry(change, emulation):
    arguments = {"first": 0, "boundary": 0, "count": 4, "hidden": [64], "memory": [], "out": 64}
    with pytest.raises(ValueError, match=r"1 to 32 layers|is wrong"):
        emulation.cuda_concat_memory_forward(arguments | change, 0)


def test_tensors_of_another_device_are_refused_with_the_reason():
    x = torch.zeros(1, 1, 2, 2)
    inputs = SoftmaxInputs(x, None, None, None, None, AttentionMask(), None, 0, 1.0)
    with pytest.raises(BackendUnavailable, match="run on CUDA devices, not on 'cpu'"):
        masked_softmax.masked_softmax_forward(inputs, x.clone())
    with pytest.raises(BackendUnavailable, match="run on CUDA devices, not on 'cpu'"):
        concat_memory.concat_memory_forward([x[0]], None, 0, 1, x.clone())
