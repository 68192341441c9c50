"""What the report compiles of relative attention: every tile that can be chosen, at its dearest.

A tile is compiled with the arguments that cost it the most registers: "light" ones with segments,
padding, causality and a memory of its own, "heavy" ones with both streams, ranks, bits, positions
and dropout as well. fp16 takes the same tiles as bf16 and differs by the type in an instruction's
name, so bf16 stands for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from xlnet_fast.kernels.triton import rel_attention_backward_kv as backward_kv
from xlnet_fast.kernels.triton import rel_attention_backward_q as backward_q
from xlnet_fast.kernels.triton import rel_attention_forward as forward
from xlnet_fast.kernels.triton.compilation import Compilation
from xlnet_fast.kernels.triton.launch import QUERY_ROWS, STRIP_KEYS
from xlnet_fast.kernels.triton.rel_attention_arguments import (
    STREAMS,
    Biases,
    KeyGrads,
    KeyTensors,
    KeyVectors,
)
from xlnet_fast.kernels.triton.tiles import Config, block_d, paired_tiles, safe_tiles

HEAD_DIMS = (32, 64, 128)  # one of each tile width
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_ROW = ("i32", "i32", "i32")  # strides (b, row, n)
_KERNELS = {
    "forward": (forward._forward_kernel, forward.GEMM_UNITS),
    "backward_q": (backward_q._backward_q_kernel, backward_q.GEMM_UNITS),
    "backward_kv": (backward_kv._backward_kv_kernel, backward_kv.GEMM_UNITS),
}


def compilations(arch: int) -> Iterator[Compilation]:
    """Every tile of the three kernels for a chip."""
    for dtype, torch_dtype in DTYPES.items():
        for head_dim in HEAD_DIMS:
            for heavy in (False, True):
                for kernel in _KERNELS:
                    for find in (safe_tiles, paired_tiles):
                        for config in find(kernel, torch_dtype, head_dim, heavy, arch):
                            for atomic in orders(kernel, head_dim):
                                yield compilation(
                                    kernel, dtype, head_dim, heavy, config, atomic,
                                    is_paired=find is paired_tiles,
                                )  # fmt: skip
                            if kernel == "forward" and heavy:
                                yield compilation(
                                    kernel, dtype, head_dim, heavy, config, None,
                                    is_paired=find is paired_tiles, one_stream=True,
                                )  # fmt: skip


def orders(kernel: str, head_dim: int) -> tuple[bool | None, ...]:
    """Whether dr is added atomically; the ordered form differs by a load and a store a stretch."""
    if kernel != "backward_q":
        return (None,)
    return (True, False) if head_dim == 64 else (True,)


def compilation(
    kernel: str,
    dtype: str,
    head_dim: int,
    heavy: bool,
    config: Config,
    atomic: bool | None,
    *,
    is_paired: bool = False,
    one_stream: bool = False,
) -> Compilation:
    """One kernel with one tile; `atomic` of `orders`, `is_paired` as in `Compilation`.

    `one_stream`: without the query stream, and no row sees its own key. Rows that see no key then
    come in large tiles too, which the tensor cores take in another way than the query stream's.
    """
    function, units = _KERNELS[kernel]
    constants: dict[str, Any] = {
        "CAUSAL": True, "SAME_LENGTH": heavy, "SELF": (not one_stream, False),
        "BY_POSITION": (False, True),
        "START": int(heavy),
        "D": head_dim, "BD": block_d(head_dim), "BM": config.block_m,
        "BM_G": min(QUERY_ROWS, config.block_m), "BN": config.block_n,
    }  # fmt: skip
    constants["HEIGHT" if kernel == "backward_kv" else "WIDTH"] = STRIP_KEYS
    features = "heavy" if heavy else "light"
    if atomic is not None:
        constants["ATOMIC"] = atomic
        width = STRIP_KEYS + config.block_m + config.block_n + 1
        constants["STRIP"] = config.block_m * width
        constants["D_STRIP"] = config.block_m * STRIP_KEYS
        features += ", atomic" if atomic else ", ordered"
    if one_stream:
        features += ", one stream"
    if is_paired:
        features += ", to be timed"
    return Compilation(
        kernel=f"rel_attention_{kernel}",
        variant="strip",
        features=features,
        dtype=dtype,
        head_dim=head_dim,
        function=function,
        types=_types(kernel, f"*{dtype}", heavy, heavy and not one_stream),
        constants=constants,
        options=config.options,
        tile=(config.block_m, config.block_n),
        gemm_units=units,
        scratch=("strips", "d_strips") if kernel == "backward_q" else ("strips",),
        is_paired=is_paired,
    )


def _types(kernel: str, scalar: str, heavy: bool, has_query: bool) -> dict[str, Any]:
    """Argument types of a kernel as its launcher passes them."""
    of_tensors, of_strides = STREAMS[kernel]
    fields: dict[str, str | None] = {
        **dict.fromkeys(("q", "out", "d_out", "dq"), scalar),
        **dict.fromkeys(("lse", "delta", "c", "norm"), "*fp32"),
        "positions": None, "segments": "*i64",
        **dict.fromkeys(("rank_q", "bits", "seed")),
    }  # fmt: skip
    if heavy:
        fields |= {"rank_q": "*i32", "bits": "*u8", "seed": "*i64"}
    content = of_tensors._make(fields[name] for name in of_tensors._fields)
    strides = of_strides._make("i32" if x == "bits" else _ROW for x in of_strides._fields)
    sizes = ["heads", "keys", "memory", "r_rows", "group_size"]
    types: dict[str, Any] = {
        "content": content,
        "query": content._replace(positions="*i32") if has_query else None,
        "strides_h": strides,
        "strides_g": strides if has_query else None,
        "rows_h": "i32", "rows_g": "i32",
        "key_tensors": KeyTensors._make([scalar] * len(KeyTensors._fields)),
        "key_strides": KeyTensors._make([_ROW] * len(KeyTensors._fields)),
        "biases": Biases._make([scalar] * len(Biases._fields)),
        "key_vectors": KeyVectors(
            code="*i32", segments="*i64", padding="*u8", rank_k="*i32" if heavy else None
        ),
        **dict.fromkeys(("left", "ahead", "chunk"), "i32" if heavy else None),
        "strips": scalar,
        "log2_scale": "fp32", "keep_from": "i32", "keep_scale": "fp32",
    }  # fmt: skip
    if kernel != "forward":
        types["scale"] = "fp32"
    if kernel == "backward_q":
        types |= {"dr": "*fp32", "sums": "*fp32", "d_strips": scalar}
        sizes += ["groups", "splits"]
    else:
        sizes.append("batch")
    if kernel == "backward_kv":
        types["grads"] = KeyGrads._make([scalar] * len(KeyGrads._fields))
        types["grad_strides"] = KeyGrads._make([_ROW] * len(KeyGrads._fields))
    return types | dict.fromkeys(sizes, "i32")
