"""Cases of the kernels of `rel_attention`: arguments of every kind, and the formula they compute.

The formula is written anew from docs/design.md section 2, so that no code is shared with what it
checks. `attention_runs.py` puts a backend to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.philox import keep_mask


@dataclass(frozen=True)
class Case:
    """One call: sizes, mask parts and options."""

    batch: int = 2
    rows: int = 17
    memory: int = 0
    heads: int = 2
    head_dim: int = 32
    groups: int = 1
    current: int | None = None  # L; default: the number of rows
    mask: tuple[str, ...] = ()
    segments: bool = False
    positions: str | None = None
    uni: bool = False  # P = J + 1 rows of r instead of L + J
    dropout_p: float = 0.0
    nan_in_padding: bool = False
    strided: bool = False
    pad: int = 1  # elements between rows of strided operands
    bits_batch: int | None = None
    apart: bool = False  # keys and values of the memory in tensors of their own
    window: tuple[int | None, int | None] | None = None
    chunk: int = 1
    r_start: int = 0
    one_head: bool = False  # of r, for all heads
    values: dict[str, float] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.rows if self.current is None else self.current


CASES = {
    # one part of a mask at a time, then together; J spans several tiles of keys
    "masks-none": Case(rows=65, memory=70),
    "masks-padding-right": Case(rows=33, memory=70, mask=("padding",)),
    "masks-padding-left": Case(rows=33, mask=("padding_left",)),
    "masks-padding-self": Case(rows=65, mask=("padding_left", "see_self"), segments=True),
    "masks-padding-all-of-one": Case(rows=17, mask=("padding_all",)),
    "masks-padding-all-self": Case(rows=17, mask=("padding_all", "see_self")),
    "masks-ranks": Case(rows=33, memory=17, mask=("ranks",)),
    "masks-ranks-self": Case(rows=33, memory=17, mask=("ranks", "see_self")),
    "masks-bits": Case(rows=33, memory=17, mask=("bits",)),
    "masks-bits-shared": Case(batch=3, rows=17, mask=("bits",), bits_batch=1),
    "masks-bits-self": Case(rows=17, memory=1, mask=("bits", "see_self")),
    "masks-causal": Case(rows=33, memory=70, mask=("causal",)),
    "masks-causal-self-padding": Case(rows=33, mask=("causal", "padding_left", "see_self")),
    "masks-causal-padding": Case(rows=33, mask=("causal", "padding_left")),
    "masks-same-length": Case(rows=130, memory=65, mask=("causal", "same_length")),
    "masks-same-length-uni": Case(rows=33, memory=65, mask=("causal", "same_length"), uni=True),
    "masks-all": Case(
        rows=65, memory=17, mask=("padding", "ranks", "bits", "causal", "same_length")
    ),
    "masks-all-self": Case(
        rows=33, memory=17, segments=True,
        mask=("padding", "ranks", "bits", "causal", "same_length", "see_self"),
    ),
    "masks-see-self-alone": Case(rows=17, mask=("see_self",)),
    "masks-bits-hide-all": Case(rows=17, memory=65, mask=("bits_all",)),
    # ragged sizes, head dims, groups of r, segments, positions, layouts
    "shapes-one": Case(batch=1, rows=1, heads=1, head_dim=16),
    "shapes-one-row-long-memory": Case(batch=1, rows=1, memory=200, segments=True),
    "shapes-130": Case(batch=1, rows=130, memory=17, heads=1, head_dim=64),
    "shapes-d128": Case(rows=65, head_dim=128, segments=True, mask=("padding",)),
    "shapes-d80": Case(rows=17, head_dim=80, segments=True, mask=("padding", "see_self")),
    "shapes-d20": Case(rows=17, head_dim=20, segments=True, mask=("padding", "see_self")),
    "shapes-d17-odd": Case(rows=17, heads=3, head_dim=17, segments=True, mask=("bits",)),
    "shapes-groups-2": Case(batch=4, groups=2, rows=17, memory=3, segments=True),
    "shapes-groups-batch": Case(batch=3, groups=3, rows=17),
    "shapes-strided": Case(rows=65, memory=17, strided=True, segments=True, mask=("padding",)),
    "shapes-fewer-rows-than-keys": Case(rows=17, memory=5, current=65, segments=True),
    "shapes-uni": Case(rows=65, memory=17, uni=True, mask=("causal",), segments=True),
    "shapes-uni-unmasked": Case(rows=33, uni=True),  # rows of r that do not exist count as 0
    "shapes-positions": Case(rows=17, memory=5, current=65, positions="any", segments=True),
    "shapes-positions-absent": Case(rows=17, current=65, positions="absent", mask=("ranks",)),
    "shapes-positions-none-present": Case(rows=5, current=17, positions="no", mask=("padding",)),
    "shapes-positions-causal": Case(
        rows=17, memory=9, current=65, positions="absent", uni=True, mask=("causal", "padding")
    ),
    "shapes-positions-self": Case(
        rows=17, current=65, positions="absent", mask=("causal", "padding", "see_self")
    ),
    "shapes-chunks": Case(
        batch=2, rows=140, memory=10, heads=1, head_dim=16, segments=True,
        mask=("padding", "bits", "causal"), dropout_p=0.2,
    ),
    "shapes-chunks-positions": Case(
        batch=1, rows=140, current=150, positions="absent", mask=("ranks",)
    ),
    # keys in two tensors; the boundary cuts a tile
    "apart-plain": Case(rows=65, memory=70, apart=True, segments=True),
    "apart-aligned": Case(rows=17, memory=64, apart=True, strided=True, pad=16),
    "apart-short": Case(rows=33, memory=3, apart=True, mask=("padding", "see_self"), segments=True),
    "apart-empty": Case(rows=17, memory=0, apart=True),
    "apart-left": Case(rows=33, memory=70, apart=True, mask=("padding_left", "see_self")),
    "apart-causal": Case(
        rows=65, memory=40, apart=True, uni=True, mask=("causal", "same_length"), segments=True
    ),
    "apart-hidden-rows": Case(
        rows=33, memory=37, apart=True, segments=True, dropout_p=0.3,
        mask=("padding", "bits", "ranks"), nan_in_padding=True,
    ),
    "apart-positions": Case(
        rows=17, current=65, memory=21, apart=True, positions="absent", mask=("ranks",)
    ),
    # dropout: bit for bit the mask of xlnet_fast.philox
    "dropout-plain": Case(rows=17, memory=70, dropout_p=0.1),
    "dropout-masked": Case(
        rows=33, memory=17, dropout_p=0.5, segments=True, mask=("padding", "bits", "causal")
    ),
    "dropout-self": Case(rows=33, memory=3, dropout_p=0.5, mask=("padding_left", "see_self")),
    "dropout-hidden-rows": Case(rows=33, dropout_p=0.5, mask=("padding_all",)),
    "dropout-positions": Case(rows=17, current=65, dropout_p=0.9, positions="any"),
    # NaN where nothing may be read, or must not matter
    "hostile-nan-padding": Case(rows=65, mask=("padding_left",), nan_in_padding=True),
    "hostile-nan-padding-self": Case(
        rows=33, memory=3, mask=("padding", "see_self"), nan_in_padding=True, segments=True
    ),
    "hostile-nan-padding-all": Case(rows=17, mask=("padding_all",), nan_in_padding=True),
    "hostile-nan-padding-all-self": Case(
        rows=17, mask=("padding_all", "see_self", "bits"), nan_in_padding=True
    ),
    "hostile-nan-padding-hidden-rows": Case(
        rows=33, mask=("padding", "bits", "ranks"), nan_in_padding=True, dropout_p=0.3
    ),
    "hostile-large-scores": Case(rows=33, memory=17, mask=("padding",), values={"q": 30.0}),
    "hostile-strided-positions": Case(
        rows=17, current=33, head_dim=24, positions="absent", strided=True, mask=("bits",)
    ),
    # windows, alone and with other parts; they leave out whole tiles of keys, rows and rows of r
    "window-both": Case(rows=130, window=(20, 9)),
    "window-none": Case(rows=17, window=(None, None)),
    "window-narrow": Case(rows=17, memory=5, window=(1, 0)),
    "window-left": Case(rows=70, memory=37, window=(33, None), segments=True),
    "window-right": Case(rows=70, memory=3, window=(None, 11)),
    "window-padding": Case(rows=130, window=(17, 17), mask=("padding",), nan_in_padding=True),
    "window-padding-left": Case(rows=130, window=(17, 17), mask=("padding_left",)),
    "window-padding-all": Case(rows=33, memory=5, window=(5, 9), mask=("padding_all",)),
    "window-self": Case(
        rows=65, memory=17, window=(9, 5), r_start=1, nan_in_padding=True,
        mask=("padding_left", "causal", "see_self"),
    ),
    "window-causal": Case(
        rows=70, memory=37, uni=True, window=(40, 3), r_start=1, mask=("causal", "see_self")
    ),
    "window-chunks": Case(
        rows=70, memory=37, window=(21, 0), chunk=16, r_start=1, apart=True, segments=True
    ),
    "window-chunks-odd": Case(rows=65, memory=5, window=(7, 3), chunk=13, r_start=1, apart=True),
    "window-chunks-wide": Case(
        rows=17, memory=3, window=(10**6, 2**31 - 1), chunk=10**6, r_start=1, apart=True
    ),
    "window-chunks-bits": Case(
        rows=65, memory=9, window=(17, 5), chunk=7, r_start=1, apart=True, mask=("bits",)
    ),
    "window-chunks-speech": Case(
        rows=65, memory=37, window=(30, 0), chunk=15, r_start=1, one_head=True, apart=True,
        mask=("padding",), dropout_p=0.2,
    ),
    "window-chunks-strided": Case(
        rows=33, memory=2, head_dim=20, window=(12, 12), chunk=2, r_start=1, one_head=True,
        apart=True, strided=True, mask=("padding",),
    ),
    "window-positions": Case(
        rows=17, memory=5, current=65, positions="absent", window=(9, 3), chunk=2, r_start=1,
        mask=("ranks",),
    ),
    "window-positions-any": Case(
        rows=33, current=130, positions="any", window=(9, 3), chunk=20, r_start=1, segments=True
    ),
    # r whose first row, which no key has, is not there; one head's rows for all
    "start-plain": Case(rows=65, memory=17, r_start=1, segments=True),
    "start-aligned": Case(rows=64, r_start=1, one_head=True),
    "start-groups": Case(batch=4, groups=2, rows=17, memory=3, r_start=1, one_head=True),
    "start-one-row": Case(batch=1, rows=1, memory=5, r_start=1),
    "start-one-head": Case(rows=33, memory=5, one_head=True, mask=("padding",)),
}  # fmt: skip


def _guarded(x: torch.Tensor, case: Case) -> torch.Tensor:
    """A copy of `x` (.., rows, N, D) in a larger buffer of NaN, so that reading beyond it shows."""
    b, rows, n, d = x.shape
    if case.strided:  # head-major, rows longer than they need to be
        buffer = x.new_full((b, n + 1, rows + 2, d + case.pad), float("nan"))
        view = buffer[:, :n, :rows, :d].transpose(1, 2)
    else:
        buffer = x.new_full((b, rows + 2, n, d), float("nan"))
        view = buffer[:, :rows]
    return view.copy_(x)


def make_inputs(case: Case, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    """Random arguments of the launcher; k, v and r lie in buffers of NaN."""
    gen = torch.Generator().manual_seed(seed)
    b, i, n, d, length = case.batch, case.rows, case.heads, case.head_dim, case.length
    j = length + case.memory

    def normal(*shape: int, name: str = "") -> torch.Tensor:
        return torch.randn(shape, generator=gen).mul_(case.values.get(name, 1.0)).to(dtype)

    x = SimpleNamespace(q=normal(b, i, n, d, name="q"), k=normal(b, j, n, d), v=normal(b, j, n, d))
    rows_of_r = (j + 1 if case.uni else j + length) - case.r_start
    x.r = normal(case.groups, rows_of_r, 1 if case.one_head else n, d)
    x.r_w_bias, x.r_r_bias = normal(n, d), normal(n, d)
    x.r_s_bias = x.seg_embed = x.segments_q = x.segments_k = None
    if case.segments:
        x.r_s_bias, x.seg_embed = normal(n, d), normal(2, n, d)
        x.segments_q = torch.randint(0, 2, (b, i), generator=gen)
        x.segments_k = torch.randint(0, 3, (b, j), generator=gen)
    x.positions = None
    if case.positions is not None:
        x.positions = torch.stack([torch.randperm(length, generator=gen)[:i] for _ in range(b)])
        absent = (
            torch.rand((b, i), generator=gen)
            < {"any": 0.0, "absent": 0.3, "no": 1.1}[case.positions]
        )
        x.positions = x.positions.masked_fill(absent, -1).to(torch.int32)
    x.mask = _make_mask(case, gen)
    x.seed = torch.tensor(0x1234_5678_9ABC + seed) if case.dropout_p else None
    if case.nan_in_padding:
        x.k[x.mask.key_padding] = float("nan")
        x.v[x.mask.key_padding] = float("inf")
        x.v[x.mask.key_padding][..., ::2] = float("nan")
    for name in ("q", "k", "v", "r"):
        setattr(x, name, _guarded(getattr(x, name), case))
    x.r = x.r.expand(-1, -1, n, -1)
    return x


def _make_mask(case: Case, gen: torch.Generator) -> AttentionMask | None:
    b, i, j = case.batch, case.rows, case.length + case.memory
    parts: dict[str, object] = {
        name: True for name in ("causal", "same_length", "see_self") if name in case.mask
    }
    if case.window is not None:
        parts |= {"window": case.window, "chunk": case.chunk}
    padding = torch.zeros(b, j, dtype=torch.bool)
    if "padding" in case.mask:
        padding[0, j - j // 3 :] = True
        padding[-1, j // 2] = True
    if "padding_left" in case.mask:
        padding[0, : j - 3] = True
    if "padding_all" in case.mask:
        padding[0] = True
    # Of "padding_none", "ranks_open" and "bits_none" nothing is hidden: the code runs all the same.
    if any(name.startswith("padding") for name in case.mask):
        parts["key_padding"] = padding
    if "ranks" in case.mask:
        parts["rank_q"] = torch.randint(0, 8, (b, i), generator=gen)  # rank 0 sees nothing
        parts["rank_k"] = torch.randint(0, 8, (b, j), generator=gen)
    if "ranks_open" in case.mask:
        parts["rank_q"], parts["rank_k"] = torch.full((b, i), 7), torch.zeros(b, j).long()
    if "bits_none" in case.mask:
        parts["bits"] = pack_bits(torch.zeros(b, i, j, dtype=torch.bool))
    if "bits" in case.mask or "bits_all" in case.mask:
        rows = case.bits_batch or b
        hidden = torch.rand((rows, i, j), generator=gen) < (2.0 if "bits_all" in case.mask else 0.5)
        hidden[0, i // 2] = True
        parts["bits"] = pack_bits(hidden)
    return AttentionMask(**parts) if parts else None


def dense_hidden(x: SimpleNamespace, position: torch.Tensor, memory: int) -> torch.Tensor:
    """Hidden (B, I, J), spelled out key by key from the definition of AttentionMask."""
    j = x.k.shape[1]
    key = torch.arange(j)
    hidden = torch.zeros(*x.q.shape[:2], j, dtype=torch.bool)
    if (m := x.mask) is None:
        return hidden
    if m.key_padding is not None:
        hidden |= m.key_padding[:, None]
    if m.rank_q is not None:
        hidden |= ~(m.rank_q[:, :, None] > m.rank_k[:, None])
    if m.bits is not None:
        hidden |= (m.bits[:, :, key // 8].int() >> (key % 8)) % 2 == 1
    if m.causal:
        hidden |= key > memory + position[:, :, None]
    if m.same_length:
        hidden |= key < position[:, :, None]
    if m.window is not None:
        start = (memory + position // m.chunk * m.chunk)[:, :, None]
        left, right = m.window
        hidden |= key < start - left if left is not None else hidden
        hidden |= key >= start + m.chunk + right if right is not None else hidden
    return hidden & (key != memory + position[:, :, None]) if m.see_self else hidden


def formula(x: SimpleNamespace, case: Case, dtype: torch.dtype) -> torch.Tensor:
    """Relative attention by the book, all scores in memory, in `dtype`, on the CPU."""
    q, k, v, r, rw, rr = (t.to(dtype) for t in (x.q, x.k, x.v, x.r, x.r_w_bias, x.r_r_bias))
    b, i, n, d = q.shape
    j, length = k.shape[1], case.length
    if case.nan_in_padding:
        k, v = (t.masked_fill(x.mask.key_padding[:, :, None, None], 0.0) for t in (k, v))
    position = torch.arange(i).expand(b, i) if x.positions is None else x.positions.long()
    present = position >= 0
    at = position.clamp(min=0)
    p = torch.arange(j) - at[:, :, None] + length  # (B, I, J)
    r = r.repeat_interleave(b // case.groups, 0)
    bd = torch.einsum("bind,bpnd->bnip", q + rr, r)
    bd = torch.nn.functional.pad(bd, (0, 1))  # a column of zeros for what is beyond r
    bd = bd.gather(3, (p - case.r_start).clamp(max=r.shape[1])[:, None].expand(b, n, i, j))
    score = torch.einsum("bind,bjnd->bnij", q + rw, k) + bd
    if x.segments_q is not None:
        rs, embed = x.r_s_bias.to(dtype), x.seg_embed.to(dtype)
        both = torch.einsum("bind,snd->bnis", q + rs, embed)
        differ = (x.segments_q[:, :, None] != x.segments_k[:, None]).long()
        score = score + both.gather(3, differ[:, None].expand(b, n, i, j))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    score = (score * d**-0.5).to(wide)
    # Added, as HF does: rounding absorbs the score, but its gradient lives on.
    score = score + torch.where(dense_hidden(x, at, case.memory)[:, None], -1e30, 0.0)
    probability = score.softmax(-1)
    if case.dropout_p:
        keep = keep_mask(x.seed, case.dropout_p, b, n, (0, i), j)
        probability = probability * keep / (1 - case.dropout_p)
    out = torch.einsum("bnij,bjnd->bind", probability.to(dtype), v)
    return out * present[:, :, None, None]
