"""The tuples that the kernels of relative attention take: every field named once, here.

A launcher fills a tuple with tensors or strides, the report with the names of their types, and a
kernel reads its fields. Triton passes the elements of a tuple in the order of the fields; None is
a constant of the compilation. A jit function that reads fields takes tuples of one class only:
within a kernel Triton tells its versions apart by the types of the elements, not by their names.

Letters: B, N, I, J, D, P are the counts of batch elements, heads, query rows, keys, head dims and
rows of r; M keys are memory, L = J - M are of the current segment, r has G groups. Strides are in
elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class ForwardStream(NamedTuple):
    """One stream in the forward kernel."""

    q: Any  # (B, I, N, D)
    out: Any  # (B, I, N, D), written
    lse: Any  # (B, N, I) fp32, written: log2 of the softmax's denominator
    positions: Any  # (B, I), or None: row i sits at position i
    segments: Any  # (B, I), or (B, L) by position; or None
    rank_q: Any  # like segments; or None
    bits: Any  # (B or 1, I or L, ceil(J / 8)); or None
    seed: Any  # one int64, or None without dropout


class ForwardStrides(NamedTuple):
    """(b, row, n) of a stream's tensors, b of its bits."""

    q: Any
    out: Any
    bits: Any


class BackwardQStream(NamedTuple):
    """One stream in the backward kernel that owns rows; as in `ForwardStream` where not said."""

    q: Any
    out: Any
    d_out: Any  # (B, I, N, D)
    dq: Any  # (B, I, N, D), written
    lse: Any
    delta: Any  # (B, N, I) fp32, written: sum_j P dP
    c: Any  # (B, N, I) fp32, written, in units of log2; None without segments
    norm: Any  # (B, N, I) fp32, written: one over the sum of P
    positions: Any
    segments: Any
    rank_q: Any
    bits: Any
    seed: Any


class BackwardQStrides(NamedTuple):
    """(b, row, n) of a stream's tensors, b of its bits."""

    q: Any
    out: Any
    d_out: Any
    dq: Any
    bits: Any


class BackwardKVStream(NamedTuple):
    """One stream in the backward kernel that owns keys; as in `BackwardQStream`, all read."""

    q: Any
    d_out: Any
    lse: Any
    delta: Any
    c: Any
    norm: Any
    positions: Any
    segments: Any
    rank_q: Any
    bits: Any
    seed: Any


class BackwardKVStrides(NamedTuple):
    """(b, row, n) of a stream's tensors, b of its bits."""

    q: Any
    d_out: Any
    bits: Any


STREAMS: dict[str, tuple[type[Any], type[Any]]] = {
    "forward": (ForwardStream, ForwardStrides),
    "backward_q": (BackwardQStream, BackwardQStrides),
    "backward_kv": (BackwardKVStream, BackwardKVStrides),
}
"""What each kernel takes of a stream: its tensors, and their strides."""


class KeyTensors(NamedTuple):
    """Tensors of the keys, or the strides (b, row, n) of each."""

    k: Any  # (B, J, N, D); (B, L, N, D) beside a memory apart
    v: Any  # like k
    k_memory: Any  # (B, M, N, D), or None: k has all keys
    v_memory: Any  # like k_memory
    r: Any  # (G, P, N, D)


class KeyGrads(NamedTuple):
    """Gradients like the tensors of `KeyTensors`, written; or the strides (b, row, n) of each."""

    dk: Any
    dv: Any
    dk_memory: Any
    dv_memory: Any


class Biases(NamedTuple):
    """Learned vectors, contiguous."""

    r_w_bias: Any  # (N, D)
    r_r_bias: Any  # (N, D)
    r_s_bias: Any  # (N, D), or None without segments
    seg_embed: Any  # (2, N, D), or None without segments


class KeyVectors(NamedTuple):
    """One number a key, (B, J) contiguous; or None."""

    code: Any  # the key's segment, PADDED for a padded one: one load tells both
    segments: Any
    padding: Any  # bytes
    rank_k: Any


class Shared(NamedTuple):
    """What all tiles of a launch share, put together in the kernel from its own arguments."""

    key_tensors: Any  # `KeyTensors`
    key_strides: Any  # `KeyTensors`
    biases: Any  # `Biases`
    key_vectors: Any  # `KeyVectors`
    heads: Any  # N
    keys: Any  # J
    memory: Any  # M
    window: Any  # (left, ahead, chunk), `launch.window`
    r_rows: Any  # P
    group_size: Any  # B / G
    log2_scale: Any  # of the scores, times log2(e)
    keep_from: Any  # dropout's threshold, less 2**31
    keep_scale: Any  # 1 / (1 - dropout_p)
