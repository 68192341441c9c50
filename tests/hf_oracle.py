"""Hugging Face's own XLNet code as the oracle, and random problems to put to it.

``hf_attention`` calls ``XLNetRelativeAttention.rel_attn_core`` unchanged, on tensors in the place
of a module's parameters. The dense mask it needs is made element by element from the definition in
``AttentionMask``'s docstring, not by the code under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import XLNetConfig
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

from xlnet_fast.masks import AttentionMask, pack_bits

F64 = torch.float64


@dataclass(frozen=True)
class Problem:
    """Arguments of ``ops.rel_attention``: ``operands`` have gradients, ``options`` have none."""

    operands: dict[str, Tensor]
    options: dict[str, Any]

    def to(self, dtype: torch.dtype) -> Problem:
        """The same problem with operands rounded to ``dtype``."""
        return replace(self, operands={name: x.to(dtype) for name, x in self.operands.items()})

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, I, J, M."""
        q, k = self.operands["q"], self.operands["k"]
        return q.shape[0], q.shape[1], k.shape[1], self.options["memory_length"]

    def grad_out(self) -> Tensor:
        """A fixed random gradient of the output, (B, I, N, D)."""
        q = self.operands["q"]
        values = torch.randn(q.shape, generator=torch.Generator().manual_seed(7), dtype=F64)
        return values.to(q.dtype)


def make_problem(
    *,
    batch: int = 4,
    queries: int = 5,
    memory: int = 3,
    heads: int = 2,
    dim: int = 4,
    groups: int = 1,
    mask: str = "none",
    segments: int = 0,
    targets: int | None = None,
    start: int = 0,
    one_table: bool = False,
    dtype: torch.dtype = F64,
    seed: int = 0,
) -> Problem:
    """Random operands and options of the given sizes.

    Args:
        queries: I, also L; with ``targets`` the length of the segment that they lie in.
        mask: a key of ``MASKS`` or ``WINDOWS``.
        segments: number of different segment ids; 0: no segment term.
        targets: number of rows at random distinct positions, the last of them absent; None: all.
        start: ``r_start``. one_table: whether all heads share a row of r.
    """
    g = torch.Generator().manual_seed(seed)
    keys, rows = memory + queries, queries if targets is None else targets
    attention_mask = (MASKS | WINDOWS)[mask](batch, queries, keys, g)
    table = (keys + 1 if attention_mask.causal else keys + queries) - start

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=F64).to(dtype)

    operands = {
        "q": normal(batch, rows, heads, dim),
        "k": normal(batch, keys, heads, dim),
        "v": normal(batch, keys, heads, dim),
        "r": normal(groups, table, 1 if one_table else heads, dim),
        "r_w_bias": normal(heads, dim),
        "r_r_bias": normal(heads, dim),
    }
    options: dict[str, Any] = {
        "mask": attention_mask,
        "memory_length": memory,
        "scale": dim**-0.5,
        **({"r_start": start} if start else {}),
    }
    segments_q = None
    if segments:
        operands |= {"r_s_bias": normal(heads, dim), "seg_embed": normal(2, heads, dim)}
        segments_k = torch.randint(0, segments, (batch, keys), generator=g)
        segments_k[:, :memory] = 0
        segments_q = segments_k[:, memory:]
        options |= {"segments_q": segments_q, "segments_k": segments_k}
    if targets is not None:
        positions = _permutations(batch, queries, g)[:, :targets].clone()
        positions[:, -1] = -1
        options |= {"positions": positions, "mask": _rows_of(attention_mask, positions)}
        if segments_q is not None:
            options["segments_q"] = segments_q.gather(1, positions.clamp(min=0))
    return Problem(operands, options)


def _rows_of(mask: AttentionMask, positions: Tensor) -> AttentionMask:
    """The mask of the rows at ``positions``, by indexing one row at a time."""
    batch = positions.shape[0]

    def take(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = x.expand(batch, *x.shape[1:])
        rows = [x[b][positions[b].clamp(min=0)] for b in range(batch)]
        return torch.stack(rows) if rows else x.new_zeros(*positions.shape, *x.shape[2:])

    return replace(mask, rank_q=take(mask.rank_q), bits=take(mask.bits))


# --- masks -------------------------------------------------------------------------------------

MaskMaker = Callable[[int, int, int, torch.Generator], AttentionMask]


def _padding(batch: int, queries: int, keys: int, left: bool) -> Tensor:
    """(B, J) bool: batch element b has b padded keys on one side of the current segment."""
    padded = torch.zeros(batch, keys, dtype=torch.bool)
    memory = keys - queries
    for b in range(batch):
        count = min(b, queries - 1)
        start = memory if left else keys - count
        padded[b, start : start + count] = True
    return padded


def _permutations(batch: int, length: int, g: torch.Generator) -> Tensor:
    """(B, L), each row a random permutation."""
    return torch.rand(batch, length, generator=g).argsort(1)


def _ranks(batch: int, queries: int, keys: int, g: torch.Generator) -> dict[str, Tensor]:
    """Ranks of a random factorisation order; memory is visible to all."""
    order = _permutations(batch, queries, g)
    memory = torch.full((batch, keys - queries), -1)
    return {"rank_q": order.int(), "rank_k": torch.cat([memory, order], 1).int()}


def _bits(batch: int, queries: int, keys: int, g: torch.Generator) -> Tensor:
    """Half of all keys hidden at random; the rows at 0 and I - 1 see nothing."""
    hidden = torch.rand(batch, queries, keys, generator=g) < 0.5
    if queries:
        hidden[:, 0] = hidden[:, -1] = True
    return pack_bits(hidden)


MASKS: dict[str, MaskMaker] = {
    "none": lambda b, i, j, g: AttentionMask(),
    "left": lambda b, i, j, g: AttentionMask(key_padding=_padding(b, i, j, True)),
    "right": lambda b, i, j, g: AttentionMask(key_padding=_padding(b, i, j, False)),
    "content": lambda b, i, j, g: AttentionMask(
        key_padding=_padding(b, i, j, True), see_self=True, **_ranks(b, i, j, g)
    ),
    "query": lambda b, i, j, g: AttentionMask(**_ranks(b, i, j, g)),
    "bits": lambda b, i, j, g: AttentionMask(bits=_bits(b, i, j, g)),
    "bits of all": lambda b, i, j, g: AttentionMask(bits=_bits(1, i, j, g), see_self=True),
    "nothing visible": lambda b, i, j, g: AttentionMask(
        key_padding=torch.ones(b, j, dtype=torch.bool)
    ),
    "uni": lambda b, i, j, g: AttentionMask(causal=True),
    "uni right": lambda b, i, j, g: AttentionMask(
        key_padding=_padding(b, i, j, False), causal=True
    ),
    "uni left self": lambda b, i, j, g: AttentionMask(
        key_padding=_padding(b, i, j, True), causal=True, see_self=True
    ),
    "same_length": lambda b, i, j, g: AttentionMask(causal=True, same_length=True),
    "all parts": lambda b, i, j, g: AttentionMask(
        key_padding=_padding(b, i, j, True),
        bits=_bits(b, i, j, g),
        causal=True,
        same_length=True,
        see_self=True,
        **_ranks(b, i, j, g),
    ),
}
"""Makers of masks, called with B, I, J and a generator."""

WINDOWS: dict[str, MaskMaker] = {
    "window": lambda b, i, j, g: AttentionMask(window=(5, 2)),
    "window right": lambda b, i, j, g: AttentionMask(
        key_padding=_padding(b, i, j, False), window=(3, 3)
    ),
    "window to the left": lambda b, i, j, g: AttentionMask(window=(4, None), **_ranks(b, i, j, g)),
    "window to the right": lambda b, i, j, g: AttentionMask(
        key_padding=_padding(b, i, j, True), window=(None, 0), see_self=True
    ),
    "window uni": lambda b, i, j, g: AttentionMask(
        causal=True, window=(7, None), bits=_bits(b, i, j, g), see_self=True
    ),
    "chunks": lambda b, i, j, g: AttentionMask(window=(6, 0), chunk=4),
    "chunks right": lambda b, i, j, g: AttentionMask(
        key_padding=_padding(b, i, j, False), window=(2, 1), chunk=3
    ),
    "chunks uni": lambda b, i, j, g: AttentionMask(causal=True, window=(0, None), chunk=5),
}
"""The same of masks with a window."""


def dense_hidden(mask: AttentionMask, positions: Tensor, keys: int, memory: int) -> Tensor:
    """(B, I, J) bool, True where hidden, key by key from the definition; ``positions`` (B, I)."""
    # Numbers out of tensors one by one would take longer than all that is tested.
    plain = SimpleNamespace(
        **{name: x.tolist() if isinstance(x, Tensor) else x for name, x in vars(mask).items()}
    )
    hidden = [
        _is_hidden(plain, b, i, j, position, memory)
        for b, rows in enumerate(positions.tolist())
        for i, position in enumerate(rows)
        for j in range(keys)
    ]
    return torch.tensor(hidden, dtype=torch.bool).view(*positions.shape, keys)


def _is_hidden(mask: SimpleNamespace, b: int, i: int, j: int, position: int, memory: int) -> bool:
    """``mask`` has lists in the place of tensors."""
    if mask.see_self and j == memory + position:
        return False
    if mask.key_padding is not None and mask.key_padding[b][j]:
        return True
    ranked = mask.rank_q is not None and mask.rank_k is not None
    if ranked and not mask.rank_q[b][i] > mask.rank_k[b][j]:
        return True
    if mask.bits is not None:
        byte = mask.bits[min(b, len(mask.bits) - 1)][i][j // 8]
        if byte >> (j % 8) & 1:
            return True
    if mask.causal and j > memory + position:
        return True
    if mask.same_length and j < position:
        return True
    left, right = mask.window or (None, None)
    first = memory + position // mask.chunk * mask.chunk
    if left is not None and j < first - left:
        return True
    return right is not None and j >= first + mask.chunk + right


def positions_of(problem: Problem) -> Tensor:
    """(B, I) positions of the query rows."""
    batch, queries, _, _ = problem.sizes
    positions = problem.options.get("positions")
    return torch.arange(queries).expand(batch, queries) if positions is None else positions


# --- Hugging Face's code -----------------------------------------------------------------------


def hf_core(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    r_s_bias: Tensor | None = None,
    seg_embed: Tensor | None = None,
    *,
    differ: Tensor | None = None,
    hidden: Tensor | None = None,
    scale: float,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``rel_attn_core`` on batch-first tensors; differ and hidden (B, I, J) bool, r (B, P, N, D).

    Returns (B, I, N, D) and the probabilities (B, N, I, J).
    """

    def dropout(p: Tensor) -> Tensor:
        return p if keep is None else p * keep / (1.0 - dropout_p)

    module = SimpleNamespace(
        r_w_bias=r_w_bias,
        r_r_bias=r_r_bias,
        r_s_bias=r_s_bias,
        seg_embed=seg_embed,
        scale=scale,
        dropout=dropout,
        rel_shift_bnij=XLNetRelativeAttention.rel_shift_bnij,
    )
    length_first = (x.transpose(0, 1) for x in (q, k, v, r))
    seg_mat = None
    if differ is not None:
        seg_mat = F.one_hot(differ.permute(1, 2, 0).long(), num_classes=2).to(q.dtype)
    attn_mask = None if hidden is None else hidden.permute(1, 2, 0)[..., None].to(q.dtype)
    out, probabilities = XLNetRelativeAttention.rel_attn_core(
        module, *length_first, seg_mat=seg_mat, attn_mask=attn_mask, output_attentions=True
    )
    return out.transpose(0, 1), probabilities.permute(2, 3, 0, 1)


def hf_attention(
    *,
    positions: Tensor | None = None,
    memory_length: int,
    mask: AttentionMask,
    scale: float,
    segments_q: Tensor | None = None,
    segments_k: Tensor | None = None,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
    r_start: int = 0,
    **operands: Tensor,
) -> Tensor:
    """``ops.rel_attention`` by HF; rows at arbitrary positions go through a one-hot mapping.

    ``keep`` (B, N, I, J) bool stands for the dropout mask, without positions only.
    """
    q, k, r = operands["q"], operands["k"], operands["r"]
    batch, rows = q.shape[:2]
    keys = k.shape[1]
    r = F.pad(r.expand(-1, -1, q.shape[2], -1), (0, 0, 0, 0, r_start, 0))  # what nobody reads
    operands["r"] = r.repeat_interleave(batch // r.shape[0], 0)
    places = torch.arange(rows).expand(batch, rows) if positions is None else positions
    hidden = dense_hidden(mask, places, keys, memory_length)
    differ = None
    if segments_q is not None and segments_k is not None:
        differ = segments_q[:, :, None] != segments_k[:, None, :]
    if positions is None:
        out, _ = hf_core(
            **operands, differ=differ, hidden=hidden, scale=scale, keep=keep, dropout_p=dropout_p
        )
        return out
    # HF spreads the rows over the segment by target_mapping, attends, and collects them again.
    mapping = F.one_hot(places.clamp(min=0), keys - memory_length) * (places >= 0)[..., None]
    operands["q"] = torch.einsum("bmnd,bml->blnd", q, mapping.to(q.dtype))

    def spread(x: Tensor) -> Tensor:
        return torch.einsum("bmj,bml->blj", x.to(F64), mapping.to(F64)) > 0

    out, _ = hf_core(
        **operands,
        differ=None if differ is None else spread(differ),
        hidden=spread(hidden),
        scale=scale,
    )
    return torch.einsum("blnd,bml->bmnd", out, mapping.to(q.dtype))


def run(attention: Callable[..., Tensor], problem: Problem, **more: Any) -> dict[str, Tensor]:
    """Output and every gradient of ``attention`` (keyword arguments only) on a problem.

    Returns:
        "out" and "d q", "d k", ...: detached tensors.
    """
    leaves = {name: x.detach().requires_grad_() for name, x in problem.operands.items()}
    out = attention(**leaves, **problem.options, **more)
    out.backward(problem.grad_out())
    grads = {f"d {name}": leaf.grad for name, leaf in leaves.items()}
    missing = [name for name, grad in grads.items() if grad is None]
    assert not missing, f"no gradient: {missing}"
    return {"out": out.detach(), **grads}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor of two ``run`` results agrees, absolutely and relatively, to ``tolerance``."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(
            value, expected[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# --- whole HF modules --------------------------------------------------------------------------


def tiny_config(**overrides: Any) -> XLNetConfig:
    """Two layers of d_model 8, no dropout."""
    sizes = {"vocab_size": 16, "d_model": 8, "n_layer": 2, "n_head": 2, "d_inner": 8}
    return XLNetConfig(**sizes, **{"dropout": 0.0, **overrides})


def hf_layer(dtype: torch.dtype = F64) -> XLNetRelativeAttention:
    """HF's attention module with random parameters (its constructor leaves them uninitialised)."""
    layer = XLNetRelativeAttention(tiny_config())
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.to(dtype).eval()
