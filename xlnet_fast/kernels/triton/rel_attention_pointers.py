"""Where the operands of one batch element and head begin: for all kernels of relative attention."""

from __future__ import annotations

from xlnet_fast.kernels.triton import jit, tl
from xlnet_fast.kernels.triton.rel_attention_arguments import (
    KeyMask,
    KeyTensors,
    RowVectors,
)
from xlnet_fast.kernels.triton.tile_ops import _source


@jit()
def _batch_and_head(i_bn, heads):
    """Batch element and head of a pair, 64 bits wide: they are multiplied with strides."""
    return (i_bn // heads).to(tl.int64), (i_bn % heads).to(tl.int64)


@jit()
def _keys_of_head(shared, i_b, i_n, START: tl.constexpr):
    """`KeyTensors` of a batch element and a head, `KeyMask` of the batch element.

    r begins where the row would be that encodes distance J, START rows before its own first.
    """
    tensors, strides, vectors = shared.key_tensors, shared.key_strides, shared.key_vectors
    k = tensors.k + (i_b * strides.k[0] + i_n * strides.k[2])
    v = tensors.v + (i_b * strides.v[0] + i_n * strides.v[2])
    r = tensors.r + (i_b // shared.group_size * strides.r[0] + i_n * strides.r[2])
    if START > 0:
        r -= START * strides.r[1]
    k_memory, v_memory = tensors.k_memory, tensors.v_memory
    if k_memory is not None:
        k_memory += i_b * strides.k_memory[0] + i_n * strides.k_memory[2]
        v_memory += i_b * strides.v_memory[0] + i_n * strides.v_memory[2]
    o_key = i_b * shared.keys
    code, padding, rank_k = vectors.code, vectors.padding, vectors.rank_k
    if padding is not None:
        padding += o_key
    if code is not None:
        code += o_key
    if rank_k is not None:
        rank_k += o_key
    return (
        KeyTensors(k=k, v=v, k_memory=k_memory, v_memory=v_memory, r=r),
        KeyMask(code=code, padding=padding, rank_k=rank_k),
    )


@jit()
def _row_vectors(stream, strides, i_b, rows, vector_rows):
    """`RowVectors` of a batch element; all but positions have `vector_rows` rows."""
    positions, rank_q, bits = stream.positions, stream.rank_q, stream.bits
    if positions is not None:
        positions += i_b * rows
    if rank_q is not None:
        rank_q += i_b * vector_rows
    if bits is not None:
        bits += i_b * strides.bits
    return RowVectors(positions=positions, rank_q=rank_q, bits=bits)


@jit()
def _source_of_head(x, s_x, x_memory, s_memory, i_b, i_n, in_memory, memory):
    """`_source` of whole tensors, for a batch element and a head; s_x and s_memory: (b, row, n)."""
    x = x + i_b * s_x[0] + i_n * s_x[2]
    if x_memory is not None:
        x_memory = x_memory + i_b * s_memory[0] + i_n * s_memory[2]
    return _source(x, s_x[1], x_memory, s_memory[1], in_memory, memory)
