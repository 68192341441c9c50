"""Relative attention of one stream and of two: validation, choice of backend, call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlnet_fast import _extension, reference
from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops._contracts.rel_attention import REL_ATTENTION, TWO_STREAM_ATTENTION
from xlnet_fast.ops._dispatch import Choice, choose, lacks_extension, request_for, spelled
from xlnet_fast.ops._validation import (
    check_dropout,
    check_integers,
    check_mask,
    check_operands,
    check_positions,
    check_rows,
    check_same,
    check_segments,
    check_shape,
    check_sources,
    check_table,
    check_tensor,
)
from xlnet_fast.ops.settled import Call, Settled, key_of
from xlnet_fast.transforms import can_look


def rel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    *,
    k_memory: Tensor | None = None,
    v_memory: Tensor | None = None,
    r_s_bias: Tensor | None = None,
    seg_embed: Tensor | None = None,
    segments_q: Tensor | None = None,
    segments_k: Tensor | None = None,
    mask: AttentionMask | None = None,
    positions: Tensor | None = None,
    memory_length: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    r_start: int = 0,
    backend: str = "auto",
    settled: Settled | None = None,
) -> Tensor:
    """Attention with Transformer-XL relative positions and XLNet segments.

    With p = j - pos_i + L (L = J - M current keys; row p of r encodes the distance J - p),

        score = scale * ((q_i + r_w_bias) . k_j + (q_i + r_r_bias) . r_p
                         + [segments differ] (q_i + r_s_bias) . (seg_embed_1 - seg_embed_0))

    and out_i = sum_j dropout(softmax_j(score + mask)) v_j. Source: Transformer-XL section 3.3,
    XLNet section 2.6, HF ``XLNetRelativeAttention.rel_attn_core``; the index identity behind
    ``rel_shift`` is derived in ``docs/maths.md``.

    Args:
        q: (B, I, N, D) queries without biases. fp16, bf16, fp32 or fp64; all floating arguments
            share dtype and device. Under autocast they are cast to its dtype. Any strides.
        k, v: (B, J, N, D) keys and values, memory first; the L current ones alone, (B, L, N, D),
            where the memory is given apart.
        k_memory, v_memory: (B, M, N, D) keys and values of the memory, both or none. All other
            arguments look at the J = M + L keys of [memory; current], which are never copied
            together on a GPU.
        r: (G, P, N, D) projected position table, or (G, P, 1, D) of one row for all heads, of which
            no copy is made; batch element b reads group b * G // B, so G divides B.
            P >= L + J - ``r_start``, or P >= J + 1 - ``r_start`` when ``mask.causal``.
        r_w_bias, r_r_bias: (N, D).
        r_s_bias, seg_embed: (N, D) and (2, N, D), with segments_q (B, I) and segments_k (B, J),
            int32 or int64; all four or none.
        mask: hidden keys; default none. Rows whose keys are all hidden are uniform over all keys.
        positions: (B, I) position of each query row in 0..L-1, in any order; negative marks an
            absent row, whose output is zero. Default: row i sits at i.
        memory_length: M; default J - I, needed with ``positions`` unless ``k_memory`` tells it.
        scale: default 1 / sqrt(D).
        dropout_p: dropout of the probabilities; ``seed``, an int64 tensor of one element, fixes the
            mask (the same on every backend).
        r_start: row 0 of r encodes the distance J - ``r_start``: 0 as in XLNet, or 1 as in the
            Conformer's tables of 2 T - 1 rows, which lack the distance J, that of no key.
        backend: "auto", "reference", "sdpa", "cpu", "pallas", "triton" or "cuda". A named one runs
            or raises; "cuda" reads only operands whose rows begin at multiples of 16 bytes,
            "pallas" is for TPUs (``xlnet_fast.tpu``). Transforms of ``torch.func`` and forward-mode
            differentiation are for "auto" and "reference".
        settled: what earlier calls of the same forward pass, with the same mask, segments and
            positions, have settled; neither checked nor chosen again.

    Returns:
        (B, I, N, D) in the dtype of q, with the strides of q where q is dense.

    Raises:
        ShapeError, ArgumentError: name the argument, what it is and what is expected.
        BackendUnavailable: the named backend cannot run this; the message says why.
    """
    check_tensor("q", q, 4, "B, I, N, D")
    operands = _as_computed(
        q, k, v, k_memory, v_memory, r, r_w_bias, r_r_bias, r_s_bias, seg_embed
    )  # fmt: skip
    objects = (mask, segments_q, segments_k, positions)
    key = None
    if settled is not None:
        numbers = (memory_length, r_start, scale, dropout_p, seed is None, backend)
        key = key_of("rel_attention", operands, objects, *numbers)
        if (call := settled.find(key)) is not None:
            return call(operands, seed)[0]
    q, k, v, k_memory, v_memory, r, r_w_bias, r_r_bias, r_s_bias, seg_embed = operands
    has_positions = positions is not None
    keys, memory_length = check_sources(q, k, k_memory, v_memory, memory_length, has_positions)
    check_operands(*operands)
    check_segments(q, keys, r_s_bias, seg_embed, segments_q, segments_k)
    check_rows("positions", positions, q, q.shape[1], "B, I")
    mask = check_mask(mask, q.shape[0], q.shape[1], keys, "q", q)
    check_table("r", r.shape[1], keys, memory_length, mask.causal, r_start)
    check_dropout(dropout_p, seed)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    rows = {"q": q, "k": k, "v": v, "k_memory": k_memory, "v_memory": v_memory, "r": r}
    features = _features(mask, segments_q, k_memory, positions, dropout_p, r, r_start)
    choice = _choose("rel_attention", operands, rows, features, backend)
    if choice.backend == "reference":
        if positions is not None and can_look(positions):
            check_positions(positions, keys - memory_length)
        return reference.rel_attention(
            q, k, v, r, r_w_bias, r_r_bias, k_memory=k_memory, v_memory=v_memory,
            r_s_bias=r_s_bias, seg_embed=seg_embed, segments_q=segments_q, segments_k=segments_k,
            mask=mask, positions=positions, memory_length=memory_length, scale=scale,
            dropout_p=dropout_p, seed=seed, r_start=r_start,
        )  # fmt: skip
    call = Call(
        REL_ATTENTION,
        inputs=(segments_q, segments_k, *mask.tensors, positions),
        options=(*mask.flags, memory_length, r_start, scale, dropout_p, spelled(choice, backend)),
    )
    if settled is not None and key is not None:
        call = call.directly(operands, seed)
        settled.keep(key, call, objects)
    return call(operands, seed)[0]


def two_stream_attention(
    q_h: Tensor,
    q_g: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    *,
    k_memory: Tensor | None = None,
    v_memory: Tensor | None = None,
    r_s_bias: Tensor | None = None,
    seg_embed: Tensor | None = None,
    segments: Tensor | None = None,
    mask: AttentionMask | None = None,
    positions: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    r_start: int = 0,
    backend: str = "auto",
    settled: Settled | None = None,
) -> tuple[Tensor, Tensor]:
    """XLNet's content and query stream over the same keys, values and positions.

    Source: XLNet section 2.3, HF ``XLNetRelativeAttention.forward`` with ``g``. Arguments not
    listed are those of ``rel_attention``; M = J - I. Where the memory is apart, k and v hold
    the I current keys.

    Args:
        q_h: (B, I, N, D) content queries.
        q_g: (B, I', N, D) query-stream queries, one row per predicted position.
        segments: (B, J) segment ids of all keys, memory first; query rows take theirs from it.
        mask: the mask of the I positions. The content stream sees itself whatever it says, the
            query stream obeys it, row m reading the mask of position ``positions[m]``;
            ``mask.see_self`` is not looked at.
        positions: (B, I') positions of the query-stream rows, negative for absent rows (output 0).
            Default: I' = I, row i at position i.
        seed: the query stream's dropout uses ``seed + 1``.

    Returns:
        (B, I, N, D) and (B, I', N, D).

    Raises:
        ShapeError, ArgumentError, BackendUnavailable: as ``rel_attention``.
    """
    check_tensor("q_h", q_h, 4, "B, I, N, D")
    check_tensor("q_g", q_g, 4, "B, I', N, D")
    q_h, q_g, *shared = _as_computed(
        q_h, q_g, k, v, k_memory, v_memory, r, r_w_bias, r_r_bias, r_s_bias, seg_embed
    )
    operands = (q_h, q_g, *shared)
    objects = (mask, segments, positions)
    key = None
    if settled is not None:
        numbers = (r_start, scale, dropout_p, seed is None, backend)
        key = key_of("two_stream_attention", operands, objects, *numbers)
        if (call := settled.find(key)) is not None:
            out_h, out_g = call(operands, seed)
            return out_h, out_g
    k, v, k_memory, v_memory, r, r_w_bias, r_r_bias, r_s_bias, seg_embed = shared
    keys, memory_length = check_sources(q_h, k, k_memory, v_memory, None, has_positions=False)
    check_operands(q_h, *shared)
    batch, _, heads, dim = q_h.shape
    if positions is None:
        check_shape("q_g (without positions)", q_g, q_h.shape, "B, I, N, D")
    check_shape("q_g", q_g, (batch, q_g.shape[1], heads, dim), "B, I', N, D")
    check_same("q_h", q_h, {"q_g": q_g})
    check_shape("segments", segments, (batch, keys), "B, J")
    check_integers("segments", segments)
    content_segments = None if segments is None else segments[:, memory_length:]
    check_segments(q_h, keys, r_s_bias, seg_embed, content_segments, segments)
    check_rows("positions", positions, q_g, q_g.shape[1], "B, I'")
    mask = check_mask(mask, batch, q_h.shape[1], keys, "q_h", q_h)
    check_table("r", r.shape[1], keys, memory_length, mask.causal, r_start)
    check_dropout(dropout_p, seed)
    scale = dim**-0.5 if scale is None else scale
    rows = {"q_h": q_h, "q_g": q_g, "k": k, "v": v, "k_memory": k_memory, "v_memory": v_memory}
    features = _features(mask, segments, k_memory, positions, dropout_p, r, r_start)
    choice = _choose("two_stream_attention", operands, rows | {"r": r}, features, backend)
    if choice.backend == "reference":
        if positions is not None and can_look(positions):
            check_positions(positions, keys - memory_length)
        return reference.two_stream_attention(
            q_h, q_g, k, v, r, r_w_bias, r_r_bias, k_memory=k_memory, v_memory=v_memory,
            r_s_bias=r_s_bias, seg_embed=seg_embed, segments=segments, mask=mask,
            positions=positions, scale=scale, dropout_p=dropout_p, seed=seed, r_start=r_start,
        )  # fmt: skip
    call = Call(
        TWO_STREAM_ATTENTION,
        inputs=(content_segments, segments, *mask.tensors, positions),
        options=(*mask.flags, memory_length, r_start, scale, dropout_p, spelled(choice, backend)),
    )
    if settled is not None and key is not None:
        call = call.directly(operands, seed)
        settled.keep(key, call, objects)
    out_h, out_g = call(operands, seed)
    return out_h, out_g


def _as_computed(*tensors: Any) -> tuple[Any, ...]:
    """The operands, q first, after autocast; one head's r (G, P, 1, D) as all heads', no copy.

    What is wrong with r, the checks tell. Its gradient is the sum over the heads.
    """
    *queries_and_keys, r, r_w_bias, r_r_bias, r_s_bias, seg_embed = _autocast(*tensors)
    q = queries_and_keys[0]
    if isinstance(r, Tensor) and r.dim() == 4 and r.shape[2] == 1 and r.shape[3] == q.shape[3]:
        r = r.expand(-1, -1, q.shape[2], -1)
    return *queries_and_keys, r, r_w_bias, r_r_bias, r_s_bias, seg_embed


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """Cast floating tensors as autocast casts a matrix product's operands: all but float64."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype)
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        else x
        for x in tensors
    )


def _features(
    mask: AttentionMask,
    segments: Tensor | None,
    k_memory: Tensor | None,
    positions: Tensor | None,
    dropout_p: float,
    r: Tensor,
    r_start: int,
) -> list[str]:
    """Which features of ``qualification.record.CLASSES`` a call has."""
    has = {
        "padding": mask.key_padding is not None,
        "segments": segments is not None,
        "dropout": dropout_p > 0.0,
        "memory": k_memory is not None,
        "causal": mask.causal,
        "ranks": mask.rank_q is not None,
        "bits": mask.bits is not None,
        "positions": positions is not None,
        "groups": r.shape[0] > 1,
        "window": mask.window is not None,
        "start": r_start > 0,
    }
    return [name for name, there in has.items() if there]


def _choose(
    op: str,
    operands: tuple[Any, ...],
    rows: dict[str, Tensor | None],
    features: list[str],
    backend: str,
) -> Choice:
    """Ask the dispatcher.

    Args:
        operands: the arguments that may need a gradient, q first.
        rows: those of them that have a row for each query, key or position, by name.
        features: as ``_features``.
    """
    q = operands[0]
    needs_grad = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in operands
    )
    request = request_for(
        op, q, head_dim=q.shape[3], needs_grad=needs_grad, features=features, rows=rows,
        backend=backend,
    )  # fmt: skip
    choice = choose(request, backend)
    if backend == "auto" and not torch.compiler.is_compiling() and lacks_extension(request):
        _extension.tell_once()
    return choice
