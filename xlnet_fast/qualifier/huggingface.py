"""The same calls by Hugging Face's code, to be timed beside ours.

The dense tensors that its model makes once per forward pass (mask, one-hot segments and targets,
a position table per batch element) are ready before the clock runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import XLNetModel
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

from xlnet_fast.masks import AttentionMask, row_positions
from xlnet_fast.qualifier.attention import AttentionProblem
from xlnet_fast.qualifier.problems import Problem
from xlnet_fast.qualifier.small_ops import MemoryProblem, SoftmaxProblem

Call = tuple[Callable[[], tuple[Tensor, ...]], list[Tensor]]
"""What to call, and the leaves whose gradients it has."""


def eager_call(problem: Problem) -> Call | None:
    """Hugging Face's way to a problem's outputs; None where it has none of its own."""
    if isinstance(problem, AttentionProblem):
        return _attention(problem)
    if isinstance(problem, SoftmaxProblem):
        return _softmax(problem)
    if isinstance(problem, MemoryProblem):
        return _memory(problem)
    return None  # a linear layer of Hugging Face is PyTorch's


def _attention(problem: AttentionProblem) -> Call:
    leaves = problem.leaves()
    options = problem.options
    length, current = _current(problem)
    batch, dtype = leaves["k"].shape[0], leaves["k"].dtype
    # (length, batch, head, dim) is its layout, with one table per batch element.
    keys, values = (_native(_whole(leaves, name)) for name in ("k", "v"))
    r = F.pad(leaves["r"], (0, 0, 0, 0, options.get("r_start", 0), 0))  # its table has a row more
    table = _native(r.repeat_interleave(batch // r.shape[0], 0))
    queries = [_native(leaves[name]) for name in problem.queries]
    segments = options.get("segments", options.get("segments_k"))
    module = SimpleNamespace(
        scale=options["scale"],
        dropout=nn.Dropout(options["dropout_p"]),
        rel_shift_bnij=XLNetRelativeAttention.rel_shift_bnij,
        **{name: leaves.get(name) for name in ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")},
    )
    one_hot = None
    if segments is not None:
        differ = segments[:, problem.memory :, None] != segments[:, None, :]
        one_hot = F.one_hot(differ.permute(1, 2, 0).long(), 2).to(dtype)
    masks = [_dense(mask, problem.memory, length, current, dtype) for mask in _masks(problem)]
    positions = options["positions"]
    mapping = (
        None if positions is None else F.one_hot(positions, current).permute(1, 2, 0).to(dtype)
    )

    def core(query: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = XLNetRelativeAttention.rel_attn_core(
            module, query, keys, values, table, seg_mat=one_hot, attn_mask=mask
        )
        return out

    def run() -> tuple[Tensor, ...]:
        outs = [core(query, mask) for query, mask in zip(queries[:-1], masks[:-1], strict=True)]
        last = queries[-1]
        if mapping is None:
            return *outs, core(last, masks[-1])
        spread = torch.einsum("mbnd,mlb->lbnd", last, mapping)
        return *outs, torch.einsum("lbnd,mlb->mbnd", core(spread, masks[-1]), mapping)

    return run, [*queries, keys, values, table, *_shared(leaves)]


def _shared(leaves: dict[str, Tensor]) -> list[Tensor]:
    names = ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")
    return [leaves[name] for name in names if name in leaves]


def _native(x: Tensor) -> Tensor:
    """As Hugging Face's projections give it, a leaf of its own."""
    return x.detach().transpose(0, 1).contiguous().requires_grad_()


def _whole(leaves: dict[str, Tensor], name: str) -> Tensor:
    """Keys or values of memory and current segment, which its model never parts."""
    memory = leaves.get(f"{name}_memory")
    return leaves[name] if memory is None else torch.cat([memory, leaves[name]], 1)


def _current(problem: AttentionProblem) -> tuple[int, int]:
    """The number of keys, and of those of the current segment."""
    keys = problem.operands["k"].shape[1]
    if "k_memory" in problem.operands:
        keys += problem.memory
    return keys, keys - problem.memory


def _masks(problem: AttentionProblem) -> list[AttentionMask]:
    """Of each stream, over all positions: Hugging Face spreads the rows it is asked for."""
    mask, positions = problem.options["mask"], problem.options["positions"]
    if problem.op == "two_stream_attention":
        return [replace(mask, see_self=see_self) for see_self in (True, False)]
    if positions is None:
        return [mask]
    return [AttentionMask(mask.key_padding, *_spread_ranks(problem), see_self=mask.see_self)]


def _spread_ranks(problem: AttentionProblem) -> tuple[Tensor | None, Tensor | None]:
    """Ranks of all positions from those of the rows asked for; others may see what they like."""
    mask, positions = problem.options["mask"], problem.options["positions"]
    if mask.rank_q is None or mask.rank_k is None:
        return None, None
    current = _current(problem)[1]
    everything = mask.rank_q.new_full((mask.rank_q.shape[0], current), current)
    return everything.scatter(1, positions.long(), mask.rank_q), mask.rank_k


def _dense(
    mask: AttentionMask, memory: int, keys: int, current: int, dtype: torch.dtype
) -> Tensor | None:
    """(I, J, B, 1), 1 where hidden."""
    if mask.hides_nothing:
        return None
    device = next((part.device for part in mask.tensors if part is not None), None)
    rows = row_positions(None, current, device or torch.device("cpu"))
    hidden = mask.hidden(rows, keys, memory)
    return None if hidden is None else hidden.permute(1, 2, 0)[..., None].to(dtype)


def _softmax(problem: SoftmaxProblem) -> Call:
    """Its lines of ``rel_attn_core`` from the scores to the probabilities."""
    leaves, options = problem.leaves(), problem.options
    scores, dropout = leaves["scores"], nn.Dropout(options["dropout_p"])
    keys, dtype = scores.shape[3], scores.dtype
    memory = options["memory_length"]
    mask = _dense(options["mask"], memory, keys, keys - memory, dtype)
    mask = None if mask is None else mask.to(scores.device)
    large = 65500 if dtype == torch.float16 else 1e30
    one_hot = None
    if "segment_scores" in leaves:
        differ = options["segments_q"][:, :, None] != options["segments_k"][:, None, :]
        one_hot = F.one_hot(differ.permute(1, 2, 0).long(), 2).to(dtype)  # (I, J, B, 2)

    def run() -> tuple[Tensor, ...]:
        total = scores + XLNetRelativeAttention.rel_shift_bnij(leaves["position_scores"], keys)
        if one_hot is not None:
            differing = leaves["segment_scores"]
            both = torch.stack([torch.zeros_like(differing), differing], -1)
            total = total + torch.einsum("ijbs,bnis->bnij", one_hot, both)
        total = total * options["scale"]
        if mask is not None:
            total = total - large * torch.einsum("ijbn->bnij", mask)
        return (dropout(F.softmax(total, dim=3)),)

    return run, list(leaves.values())


def _memory(problem: MemoryProblem) -> Call:
    settings: Any = SimpleNamespace(mem_len=problem.mem_len, reuse_len=problem.reuse_len)
    memories: Sequence[Tensor | None] = problem.memory or [None] * len(problem.hidden)
    pairs = list(zip(problem.hidden, memories, strict=True))
    return lambda: tuple(XLNetModel.cache_mem(settings, h, m) for h, m in pairs), []
