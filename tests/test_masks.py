"""AttentionMask against its definition and against the masks that HF's own model builds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_oracle import MASKS, WINDOWS, dense_hidden, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import XLNetModel

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.masks import (
    AttentionMask,
    clear_padded,
    pack_bits,
    row_positions,
    take_rows,
    unpack_bits,
)

BATCH = 4


def expand(mask: AttentionMask, positions: Tensor, keys: int, memory: int, **more: Any) -> Tensor:
    """``mask.hidden`` with "nothing" written out; (B or 1, I, J)."""
    hidden = mask.hidden(positions, keys, memory, **more)
    return torch.zeros(1, 1, keys, dtype=torch.bool) if hidden is None else hidden


@pytest.mark.parametrize("kind", [*MASKS, *WINDOWS])
@pytest.mark.parametrize(("queries", "memory"), [(1, 0), (5, 0), (7, 4), (9, 1)])
def test_hidden_follows_the_definition(kind, queries, memory):
    keys = queries + memory
    mask = (MASKS | WINDOWS)[kind](BATCH, queries, keys, torch.Generator().manual_seed(0))
    mask.validate(BATCH, queries, keys)
    positions = torch.arange(queries)[None]
    expected = dense_hidden(mask, positions.expand(BATCH, -1), keys, memory)
    actual = expand(mask, positions, keys, memory)
    assert actual.dtype == torch.bool
    assert torch.equal(actual.expand(BATCH, queries, keys), expected)
    assert mask.hides_nothing == (kind == "none")


@given(data=st.data())
def test_hidden_at_any_positions_and_any_rows(data):
    queries = data.draw(st.integers(1, 6), "I")
    current = data.draw(st.integers(queries, 8), "L")
    memory = data.draw(st.integers(0, 9), "M")
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    keys = memory + current
    parts: dict[str, Any] = {}
    if data.draw(st.booleans(), "padding"):
        parts["key_padding"] = torch.rand(BATCH, keys, generator=g) < 0.3
    if data.draw(st.booleans(), "ranks"):
        parts["rank_q"] = torch.randint(-2, 4, (BATCH, queries), generator=g)
        parts["rank_k"] = torch.randint(-2, 4, (BATCH, keys), generator=g)
    if data.draw(st.booleans(), "bits"):
        rows = data.draw(st.sampled_from([1, BATCH]), "rows of bits")
        parts["bits"] = pack_bits(torch.rand(rows, queries, keys, generator=g) < 0.3)
    causal = data.draw(st.booleans(), "causal")
    same_length = causal and data.draw(st.booleans(), "same_length")
    see_self = data.draw(st.booleans(), "see_self")
    side = st.none() | st.integers(0, 5)
    window = data.draw(st.none() | st.tuples(side, side), "window")
    chunk = 1 if window is None else data.draw(st.integers(1, 4), "chunk")
    flags = {"causal": causal, "same_length": same_length, "see_self": see_self}
    mask = AttentionMask(**parts, **flags, window=window, chunk=chunk)
    again = AttentionMask.from_parts(mask.tensors, mask.flags)
    assert again.flags[:5] == mask.flags[:5]
    assert again.has_window == mask.has_window
    mask.validate(BATCH, queries, keys)
    positions = torch.randint(-1, current, (BATCH, queries), generator=g)
    expected = dense_hidden(mask, positions, keys, memory)
    for same in (mask, again):
        assert torch.equal(expand(same, positions, keys, memory).expand(expected.shape), expected)
    start = data.draw(st.integers(0, queries - 1), "first row")
    rows = slice(start, data.draw(st.integers(start + 1, queries), "end of rows"))
    part = expand(mask, positions, keys, memory, rows=rows)
    assert torch.equal(part.expand(expected[:, rows].shape), expected[:, rows])
    first = data.draw(st.integers(0, BATCH - 1), "first element")
    count = data.draw(st.integers(1, BATCH - first), "elements")
    narrow = mask.narrow_batch(first, count)
    narrow.validate(count, queries, keys)
    part = expand(narrow, positions[first : first + count], keys, memory)
    wanted = expected[first : first + count]
    assert torch.equal(part.expand(wanted.shape), wanted)


@given(
    keys=st.integers(0, 40), rows=st.integers(0, 3), seed=st.integers(0, 9), batch=st.integers(1, 2)
)
def test_bits_round_trip_and_lie_where_the_format_says(keys, rows, seed, batch):
    hidden = torch.rand(batch, rows, keys, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack_bits(hidden)
    assert bits.dtype == torch.uint8
    assert bits.shape == (batch, rows, (keys + 7) // 8)
    assert torch.equal(unpack_bits(bits, keys), hidden)
    for b in range(batch):
        for i in range(rows):
            for j in range(8 * bits.shape[2]):
                bit = int(bits[b, i, j // 8]) >> (j % 8) & 1
                assert bit == (bool(hidden[b, i, j]) if j < keys else 0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"key_padding": torch.zeros(2, 5)}, r"mask.key_padding has dtype torch.float32.*bool"),
        ({"key_padding": torch.zeros(2, 4, dtype=torch.bool)}, r"\(2, 4\), expected \(2, 5\)"),
        ({"key_padding": torch.zeros(5, dtype=torch.bool)}, r"\(5,\), expected \(2, 5\)"),
        ({"rank_q": torch.zeros(2, 3, dtype=torch.int32)}, "given together"),
        ({"rank_k": torch.zeros(2, 5, dtype=torch.int32)}, "given together"),
        (
            {
                "rank_q": torch.zeros(2, 3, dtype=torch.int32),
                "rank_k": torch.zeros(2, 5, dtype=torch.int16),
            },
            r"mask.rank_k has dtype torch.int16.*int32 or torch.int64",
        ),
        (
            {
                "rank_q": torch.zeros(2, 5, dtype=torch.int32),
                "rank_k": torch.zeros(2, 5, dtype=torch.int32),
            },
            r"mask.rank_q has shape \(2, 5\), expected \(2, 3\)",
        ),
        ({"bits": torch.zeros(2, 3, 2, dtype=torch.uint8)}, r"mask.bits .*expected \(2, 3, 1\)"),
        ({"bits": torch.zeros(3, 3, 1, dtype=torch.uint8)}, r"mask.bits .*expected \(2, 3, 1\)"),
        ({"bits": torch.zeros(2, 3, 1, dtype=torch.bool)}, "mask.bits has dtype torch.bool"),
        ({"bits": torch.zeros((), dtype=torch.uint8)}, r"mask.bits .*expected \(2, 3, 1\)"),
        ({"key_padding": [[False] * 5] * 2}, "mask.key_padding must be a tensor, got list"),
        ({"same_length": True}, "needs mask.causal=True"),
    ],
)
def test_wrong_parts_are_named(parts, message):
    with pytest.raises(ShapeError, match=message):
        AttentionMask(**parts).validate(2, 3, 5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"window": 4}, r"mask.window is 4, expected \(left, right\), each None .*from 0 to"),
        ({"window": (4,)}, r"mask.window is \(4,\), expected \(left, right\)"),
        ({"window": [4, 4]}, r"mask.window is \[4, 4\], expected"),
        ({"window": (-1, 3)}, r"mask.window is \(-1, 3\), expected"),
        ({"window": (3, -1)}, r"mask.window is \(3, -1\), expected"),
        ({"window": (3, 2.0)}, r"mask.window is \(3, 2.0\), expected"),
        ({"window": (True, 2)}, r"mask.window is \(True, 2\), expected"),
        ({"window": (2**31, 2)}, r"mask.window is \(2147483648, 2\), .*to 2147483647"),
        ({"window": (3, 2), "chunk": 0}, "mask.chunk is 0, expected a whole number from 1"),
        ({"window": (3, 2), "chunk": 1.5}, "mask.chunk is 1.5, expected a whole number"),
        ({"chunk": 4}, "mask.chunk is 4, which needs mask.window; it is None"),
    ],
)
def test_wrong_windows_are_named(parts, message):
    with pytest.raises(ArgumentError, match=message):
        AttentionMask(**parts).validate(2, 3, 5)


def test_clear_padded_touches_only_what_is_not_finite_and_padded():
    x = torch.randn(2, 3, 1, 2)
    x[0, 1], x[1, 2] = float("nan"), float("inf")
    padding = torch.tensor([[False, True, True], [False, False, False]])
    cleared = clear_padded(x, padding)
    assert torch.equal(cleared[0, 1], torch.zeros(1, 2))
    assert torch.equal(cleared[0, ::2], x[0, ::2])
    assert torch.equal(cleared[1], x[1])
    assert clear_padded(x, None) is x


def test_rows_and_positions():
    device = torch.device("cpu")
    assert row_positions(None, 3, device).tolist() == [[0, 1, 2]]
    given_positions = torch.tensor([[2, -1]], dtype=torch.int32)
    assert row_positions(given_positions, 2, device).dtype == torch.int64
    rows = torch.tensor([[2, 0], [1, 1]])
    assert take_rows(None, rows) is None
    assert take_rows(torch.tensor([[5, 6, 7]]), rows).tolist() == [[7, 5], [6, 6]]
    wide = torch.tensor([[[1], [2], [3]], [[4], [5], [6]]])
    assert take_rows(wide, rows.int()).tolist() == [[[3], [1]], [[5], [5]]]
    assert take_rows(wide, -rows).shape == (2, 2, 1)
    assert take_rows(wide[:, :0], rows).tolist() == [[[0], [0]], [[0], [0]]]


# --- the masks of HF's model -------------------------------------------------------------------


class HFMasks:
    """Runs HF's XLNetModel and keeps what its first attention layer is given, (B, I, J) bool."""

    def __init__(self, **config: Any) -> None:
        self.model = XLNetModel(tiny_config(**config)).eval()
        self.seen: tuple[Any, ...] = ()
        attention = self.model.layer[0].rel_attn
        attention.register_forward_pre_hook(self._keep)

    def _keep(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.seen = args

    def __call__(self, queries: int, memory: int, **inputs: Any) -> tuple[Tensor, ...]:
        """Content mask, query mask, segments differ; each (B, I, J), False where there is none."""
        batch, keys = inputs.pop("batch", BATCH), memory + queries
        mems = [torch.randn(memory, batch, 8) for _ in range(2)] if memory else None
        ids = torch.randint(0, 16, (batch, queries))
        with torch.no_grad():
            self.model(ids, mems=mems, use_mems=True, **inputs)
        content, query, _, seg_mat = self.seen[2:6]

        def expand(x: Tensor | None) -> Tensor:
            if x is None:
                return torch.zeros(batch, queries, keys, dtype=torch.bool)
            return (x[..., 0] > 0).permute(2, 0, 1).expand(batch, queries, keys)

        differ = None if seg_mat is None else seg_mat[..., 1:]
        return expand(content), expand(query), expand(differ)


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("permuted", [False, True])
def test_padding_and_permutation_are_hugging_faces(memory, side, permuted):
    queries = 6
    keys = memory + queries
    generator = torch.Generator().manual_seed(1)
    mask = MASKS[side](BATCH, queries, keys, generator)
    inputs: dict[str, Any] = {"attention_mask": (~mask.key_padding[:, memory:]).float()}
    if permuted:
        ranks = MASKS["query"](BATCH, queries, keys, generator)
        mask = replace(mask, rank_q=ranks.rank_q, rank_k=ranks.rank_k)
        rank = ranks.rank_q
        inputs["perm_mask"] = (rank[:, :, None] <= rank[:, None, :]).float()
    inputs["target_mapping"] = torch.eye(queries).expand(BATCH, queries, queries)
    inputs["token_type_ids"] = torch.randint(0, 4, (BATCH, queries))
    content, query, differ = HFMasks()(queries, memory, **inputs)
    positions = torch.arange(queries)[None]
    seen = replace(mask, see_self=True).hidden(positions, keys, memory)
    assert torch.equal(content, seen.expand_as(content))
    blind = mask.hidden(positions, keys, memory)
    assert torch.equal(query, blind.expand_as(query))
    segments = torch.cat([torch.zeros(BATCH, memory), inputs["token_type_ids"]], 1)
    assert torch.equal(differ, segments[:, memory:, None] != segments[:, None, :])


@pytest.mark.parametrize("memory", [0, 2, 7])
@pytest.mark.parametrize("same_length", [False, True])
def test_causality_is_hugging_faces(memory, same_length):
    queries, keys = 5, 5 + memory
    oracle = HFMasks(attn_type="uni", same_length=same_length)
    content, _, _ = oracle(queries, memory, batch=1)
    mask = AttentionMask(causal=True, same_length=same_length, see_self=True)
    hidden = mask.hidden(torch.arange(queries)[None], keys, memory)
    assert torch.equal(hidden, content)
    padding = MASKS["right"](2, queries, keys, torch.Generator())
    padding = AttentionMask(key_padding=padding.key_padding[1:])
    inputs = {"attention_mask": (~padding.key_padding[:, memory:]).float(), "batch": 1}
    content, _, _ = oracle(queries, memory, **inputs)
    both = replace(mask, key_padding=padding.key_padding)
    assert torch.equal(both.hidden(torch.arange(queries)[None], keys, memory), content)


@pytest.mark.parametrize("part", ["target_mapping", "nothing"])
def test_no_mask_is_no_mask_to_hugging_face_too(part):
    inputs = {"target_mapping": torch.eye(4).expand(BATCH, 4, 4)} if part != "nothing" else {}
    content, query, _ = HFMasks()(4, 2, **inputs)
    assert not content.any()
    assert not query.any()
