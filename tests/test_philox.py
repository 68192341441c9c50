"""Dropout masks against their definition, which is written here once more in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from xlnet_fast import _extension, philox
from xlnet_fast.errors import ArgumentError, ShapeError

CPU = torch.device("cpu")
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x243F6A8885A308D3, 2**32, 2**32 - 1]

# Random123's kat_vectors for philox4x32-10: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_plain(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 on Python integers, as the paper writes it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & 0xFFFFFFFF,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def keep_mask_plain(
    seed: int, p: float, heads: int, rows: tuple[int, int], keys: int, batch: tuple[int, int]
) -> torch.Tensor:
    """The definition of `philox.keep_mask`, one element at a time."""
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    threshold = int(p * 2**32)

    def kept(b: int, n: int, i: int, j: int) -> bool:
        return philox_plain((j // 4, i, b * heads + n, 0), key)[j % 4] >= threshold

    return torch.tensor(
        [
            [[[kept(b, n, i, j) for j in range(keys)] for i in range(*rows)] for n in range(heads)]
            for b in range(*batch)
        ],
        dtype=torch.bool,
    ).view(batch[1] - batch[0], heads, rows[1] - rows[0], keys)


def aten(
    seed: int | torch.Tensor,
    p: float,
    heads: int,
    rows: tuple[int, int],
    keys: int,
    batch: tuple[int, int],
    device: torch.device = CPU,
) -> torch.Tensor:
    threshold = philox.keep_threshold(p)
    return philox.keep_mask_aten(seed, threshold, heads, rows, keys, batch, device)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter, key, words):
    assert philox_plain(counter, key) == words
    tensors = philox.philox4x32(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in tensors) == words


@pytest.mark.parametrize("seed", SEEDS)
def test_aten_matches_the_definition(seed):
    expected = keep_mask_plain(seed, 0.3, 3, (5, 7), 13, (1, 3))
    assert torch.equal(aten(seed, 0.3, 3, (5, 7), 13, (1, 3)), expected)
    assert torch.equal(aten(torch.tensor(seed), 0.3, 3, (5, 7), 13, (1, 3)), expected)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    p=st.floats(0, 1, exclude_max=True),
    heads=st.integers(1, 3),
    row=st.integers(0, 2**31),
    n_rows=st.integers(0, 3),
    keys=st.integers(0, 70),
    first=st.integers(0, 1000),
)
def test_keep_mask_matches_the_definition(seed, p, heads, row, n_rows, keys, first):
    rows, batch = (row, row + n_rows), (first, first + 1)
    got = philox.keep_mask(seed, p, 2000, heads, rows, keys, batch_range=batch)
    assert got.dtype == torch.bool
    assert got.is_contiguous()
    assert torch.equal(got, keep_mask_plain(seed, p, heads, rows, keys, batch))


@pytest.mark.parametrize("compiled", [True, False])
def test_what_equals_the_threshold_is_kept(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(_extension, "load", lambda: None)
    words = philox_plain((0, 0, 0, 0), (5, 0))
    for j, word in enumerate(words):
        for threshold in (word, word + 1):
            keep = philox.keep_mask(5, threshold / 2**32, 1, 1, (0, 1), 4)
            assert bool(keep[0, 0, 0, j]) == (word >= threshold)


@pytest.mark.parametrize("compiled", [True, False])
def test_chunks_are_independent(compiled, monkeypatch):
    """Any tile of rows and batch elements equals that part of the whole mask."""
    if not compiled:
        monkeypatch.setattr(_extension, "load", lambda: None)
    whole = philox.keep_mask(7, 0.4, 4, 3, (0, 11), 29)
    for b0, b1 in ((0, 1), (1, 4), (2, 2)):
        for i0, i1 in ((0, 11), (3, 4), (10, 11), (5, 5)):
            part = philox.keep_mask(7, 0.4, 4, 3, slice(i0, i1), 29, batch_range=(b0, b1))
            assert torch.equal(part, whole[b0:b1, :, i0:i1])
    # Fewer keys are a prefix: memory that grows on the right does not redraw what was there.
    for keys in (1, 4, 6, 28):
        assert torch.equal(
            philox.keep_mask(7, 0.4, 4, 3, (0, 11), keys),
            whole[..., :keys],
        )


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_frequency(p):
    """Kept fractions are within five standard deviations: in all, by key residue, row and head."""
    mask = philox.keep_mask(2024, p, 4, 8, (0, 64), 256).double()

    def check(values: torch.Tensor, samples: int) -> None:
        bound = 5 * math.sqrt(p * (1 - p) / samples)
        assert (values - (1 - p)).abs().max() < bound

    check(mask.mean(), mask.numel())
    check(mask.view(-1, 4).mean(0), mask.numel() // 4)
    check(mask.mean((0, 1, 3)), mask.numel() // 64)
    check(mask.mean((2, 3)), mask.numel() // 32)
    neighbours = (mask[..., 1:] * mask[..., :-1]).mean()
    assert (neighbours - (1 - p) ** 2).abs() < 10 / math.sqrt(mask.numel())


def test_seeds_differ():
    masks = torch.stack([philox.keep_mask(s, 0.5, 1, 2, (0, 8), 64).flatten() for s in SEEDS])
    agreement = (masks[:, None] == masks[None]).double().mean(-1)
    assert agreement.fill_diagonal_(0.5).sub(0.5).abs().max() < 0.1


def test_p_zero_keeps_all_and_p_near_one_almost_none():
    assert philox.keep_mask(3, 0.0, 2, 2, (0, 8), 64).all()
    assert philox.keep_threshold(0.0) == 0
    assert philox.keep_threshold(math.nextafter(1.0, 0.0)) == 2**32 - 1
    assert not philox.keep_mask(3, math.nextafter(1.0, 0.0), 2, 2, (0, 8), 64).any()


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan, math.inf, -math.inf])
def test_p_outside_its_range(p):
    with pytest.raises(ArgumentError, match=r"\[0, 1\)"):
        philox.keep_mask(0, p, 1, 1, (0, 1), 1)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"seed": torch.tensor(1.0)}, ArgumentError, "int64 tensor, got torch.float32"),
        ({"seed": torch.tensor([1, 2])}, ShapeError, r"one element, got shape \(2,\)"),
        ({"seed": 2**63}, ArgumentError, "must fit int64"),
        ({"batch": -1}, ArgumentError, "batch must not be negative"),
        ({"heads": -1}, ArgumentError, "heads must not be negative"),
        ({"keys": -1}, ArgumentError, "keys must not be negative"),
        ({"rows": (2, 1)}, ArgumentError, "0 <= begin <= end"),
        ({"rows": (-1, 1)}, ArgumentError, "0 <= begin <= end"),
        ({"rows": slice(None, 3)}, ArgumentError, "slice"),
        ({"rows": slice(0, 4, 2)}, ArgumentError, "without a step"),
        ({"batch_range": (0, 3)}, ArgumentError, "end <= 2"),
        ({"batch_range": (2, 1)}, ArgumentError, "begin <= end"),
    ],
)
def test_bad_arguments(change, error, words):
    arguments = {"seed": 0, "p": 0.1, "batch": 2, "heads": 1, "rows": (0, 4), "keys": 4}
    assert philox.keep_mask(**arguments).shape == (2, 1, 4, 4)
    with pytest.raises(error, match=words):
        philox.keep_mask(**(arguments | change))


@pytest.mark.parametrize("seed", [5, torch.tensor(5), torch.tensor([5])])
def test_forms_of_the_seed_agree(seed):
    expected = keep_mask_plain(5, 0.2, 2, (0, 3), 9, (0, 1))
    assert torch.equal(philox.keep_mask(seed, 0.2, 1, 2, (0, 3), 9), expected)
    assert torch.equal(philox.keep_mask(seed, 0.2, 1, 2, (0, 3), 9, device="cpu"), expected)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)], ids=str)
@pytest.mark.parametrize("compiled", [True, False])
def test_empty(shape, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(_extension, "load", lambda: None)
    batch, heads, rows, keys = shape
    assert philox.keep_mask(1, 0.5, batch, heads, (0, rows), keys).shape == shape


def test_traces_without_reading_the_seed():
    """compile in one graph, export with a dynamic length, make_fx: the seed stays an input."""

    def mask(seed, x):
        return philox.keep_mask(seed, 0.3, 2, 3, (0, x.shape[0]), x.shape[0])

    def expected(seed, length):
        return keep_mask_plain(seed, 0.3, 3, (0, length), length, (0, 2))

    compiled = torch.compile(mask, fullgraph=True, backend="eager")
    for seed in (11, -12):
        assert torch.equal(compiled(torch.tensor(seed), torch.ones(6)), expected(seed, 6))

    class Module(torch.nn.Module):
        def forward(self, seed, x):
            return mask(seed, x)

    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(
        Module(), (torch.tensor(11), torch.ones(6)), dynamic_shapes=({}, {0: length})
    )
    for seed, n in ((11, 6), (-12, 9), (13, 4)):
        assert torch.equal(program.module()(torch.tensor(seed), torch.ones(n)), expected(seed, n))

    traced = make_fx(mask)(torch.tensor(11), torch.ones(6))
    assert torch.equal(traced(torch.tensor(-12), torch.ones(6)), expected(-12, 6))


def test_vmap_over_seeds():
    seeds = torch.tensor([3, 4])
    masks = torch.vmap(lambda seed: philox.keep_mask(seed, 0.3, 1, 2, (0, 3), 5))(seeds)
    for seed, mask in zip(seeds.tolist(), masks, strict=True):
        assert torch.equal(mask, keep_mask_plain(seed, 0.3, 2, (0, 3), 5, (0, 1)))


@pytest.mark.slow
def test_inductor_gives_the_same_bits():
    """Generated code must not rely on signed overflow: the extremes of every word are covered."""
    mask = torch.compile(
        lambda seed: philox.keep_mask(seed, 0.5, 2, 3, (2**32 - 9, 2**32 - 2), 19), fullgraph=True
    )
    for seed in SEEDS:
        expected = keep_mask_plain(seed, 0.5, 3, (2**32 - 9, 2**32 - 2), 19, (0, 2))
        assert torch.equal(mask(torch.tensor(seed)), expected)


def test_on_meta():
    assert philox.keep_mask(1, 0.5, 2, 3, (0, 4), 5, device="meta").shape == (2, 3, 4, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_matches_the_cpu_without_synchronising():
    seed = torch.tensor(-77, device="cuda")
    philox.keep_mask(seed, 0.3, 2, 3, (0, 5), 33)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = philox.keep_mask(seed, 0.3, 2, 3, (0, 5), 33)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.cpu(), keep_mask_plain(-77, 0.3, 3, (0, 5), 33, (0, 2)))
