"""Attention probabilities by the C++ kernels: from tensors to addresses and strides.

Letters: B batch, N heads, I query rows, J keys, P columns of the position table. The kernels are in
``csrc/cpu/masked_softmax_rows.h``; they take fp32, bf16 and fp16, compute in fp32, give the same
bits on any number of threads and need O(J) memory a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError
from xlnet_fast.kernels.cpu.addresses import DTYPES, Addresses
from xlnet_fast.kernels.cpu.instruction_sets import instruction_set
from xlnet_fast.operands import SoftmaxInputs, check_like
from xlnet_fast.philox import keep_threshold


def masked_softmax_forward(inputs: SoftmaxInputs, out: Tensor) -> None:
    """Fill ``out`` (B, N, I, J); see ``ops.masked_softmax``.

    Raises:
        ArgumentError, ShapeError: what memory would not survive; a public op checks it before.
    """
    memory = Addresses()
    arguments = _arguments(memory, inputs)
    check_like("out", out, inputs.scores)
    arguments["out"] = memory.output(out)
    _extension.require().masked_softmax_forward(
        arguments, torch.get_num_threads(), instruction_set()
    )
    memory.write_back()


def masked_softmax_backward(
    inputs: SoftmaxInputs, out: Tensor, grad_out: Tensor, grads: Sequence[Tensor]
) -> None:
    """Fill ``grads``, shaped like scores, position_scores and segment_scores (empty where None).

    The probabilities are computed again, unless ``out`` has them in fp32 and undropped. Always
    deterministic.

    Raises:
        ArgumentError, ShapeError: as ``masked_softmax_forward``.
    """
    memory = Addresses()
    arguments = _arguments(memory, inputs)
    check_like("out", out, inputs.scores)
    check_like("grad_out", grad_out, inputs.scores)
    arguments["out"], arguments["d_out"] = memory.view(out), memory.view(grad_out)
    names = ("scores", "position_scores", "segment_scores")
    for name, like, grad in zip(names, inputs.terms, grads, strict=True):
        if like is not None:
            check_like(f"the gradient of {name}", grad, like)
            arguments[f"d_{name}"] = memory.output(grad)
    _extension.require().masked_softmax_backward(
        arguments, torch.get_num_threads(), instruction_set()
    )
    memory.write_back()


def _arguments(memory: Addresses, inputs: SoftmaxInputs) -> dict[str, Any]:
    """Fields of ``MaskedSoftmaxParams`` in csrc/params.h, but for the outputs."""
    if inputs.scores.device.type != "cpu":
        raise ArgumentError(f"scores is on {inputs.scores.device}, expected the CPU")
    inputs.check()
    batch, heads, rows, keys = inputs.scores.shape
    mask, bits, dropout_p, seed = inputs.mask, inputs.mask.bits, inputs.dropout_p, inputs.seed
    left, right, chunk = mask.limits
    return {
        "dtype": DTYPES[inputs.scores.dtype],
        "batch": batch, "heads": heads, "rows": rows, "keys": keys,
        "memory": inputs.memory_length, "table": inputs.table,
        "scores": memory.view(inputs.scores),
        "position_scores": memory.view(inputs.position_scores),
        "segment_scores": memory.view(inputs.segment_scores),
        "segments_q": memory.integers("segments_q", inputs.segments_q),
        "segments_k": memory.integers("segments_k", inputs.segments_k),
        "positions": memory.integers("positions", inputs.positions),
        "key_padding": memory.flat(mask.key_padding),
        "rank_q": memory.integers("mask.rank_q", mask.rank_q),
        "rank_k": memory.integers("mask.rank_k", mask.rank_k),
        "bits": memory.flat(bits),
        "bits_batch_stride": 0 if bits is None or bits.shape[0] == 1 else bits[0].numel(),
        "causal": mask.causal, "same_length": mask.same_length, "see_self": mask.see_self,
        "window_left": left, "window_right": right, "chunk": chunk,
        "scale": inputs.scale,
        "keep_scale": 1.0 / (1.0 - dropout_p),
        "keep_from": keep_threshold(dropout_p),
        "seed": 0 if seed is None else int(seed) % 2**64,
        "dropout": dropout_p > 0.0,
    }  # fmt: skip
