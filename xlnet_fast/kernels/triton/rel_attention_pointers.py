"""Where the operands of one batch element and head begin: for all kernels of relative attention."""

from __future__ import annotations

from xlnet_fast.kernels.triton import jit, tl
from xlnet_fast.kernels.triton.rel_attention_arguments import KeyTensors
from xlnet_fast.kernels.triton.tile_ops import _source


@jit()
def _batch_and_head(i_bn, heads):
    """Batch element and head of a pair, 64 bits wide: they are multiplied with strides."""
    return (i_bn // heads).to(tl.int64), (i_bn % heads).to(tl.int64)


@jit()
def _keys_of_head(shared, i_b, i_n, START: tl.constexpr):
    """`KeyTensors` of a batch element and a head, and one past the last row of r.

    r begins where the row would be that encodes distance J, START rows before its own first.
    Without a memory apart the current keys stand for it, as Triton 3.6 cannot return None.
    """
    tensors, strides = shared.key_tensors, shared.key_strides
    k = tensors.k + (i_b * strides.k[0] + i_n * strides.k[2])
    v = tensors.v + (i_b * strides.v[0] + i_n * strides.v[2])
    r = tensors.r + (i_b // shared.group_size * strides.r[0] + i_n * strides.r[2])
    if START > 0:
        r -= START * strides.r[1]
    r_stop = shared.r_rows + START
    k_memory = k
    v_memory = v
    if tensors.k_memory is not None:
        s_k, s_v = strides.k_memory, strides.v_memory
        k_memory = tensors.k_memory + (i_b * s_k[0] + i_n * s_k[2])
        v_memory = tensors.v_memory + (i_b * s_v[0] + i_n * s_v[2])
    return KeyTensors(k=k, v=v, k_memory=k_memory, v_memory=v_memory, r=r), r_stop


@jit()
def _source_of_head(
    x, s_x, x_memory, s_memory, i_b, i_n, in_memory, memory, APART: tl.constexpr
):  # fmt: skip
    """`_source` of whole tensors, for a batch element and a head; s_x and s_memory: (b, row, n)."""
    x = x + i_b * s_x[0] + i_n * s_x[2]
    if APART:
        x_memory = x_memory + i_b * s_memory[0] + i_n * s_memory[2]
    return _source(x, s_x[1], x_memory, s_memory[1], in_memory, memory, APART)
