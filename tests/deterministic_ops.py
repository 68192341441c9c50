"""Forbids what PyTorch cannot do twice alike on CUDA, on any device.

`torch.use_deterministic_algorithms` says nothing on a CPU of what it would refuse on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

# By cuBLAS: these raise there without CUBLAS_WORKSPACE_CONFIG.
PRODUCTS = (
    "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm", "dot", "vdot", "addr", "linear",
    "matmul", "einsum", "_addmm_activation", "_scaled_mm", "_grouped_mm",
)  # fmt: skip
# These raise there, or take a slow way, or (without the switch) add up in any order.
UNORDERED = (
    "index_add", "index_put", "_index_put_impl", "put", "index_copy", "index_reduce",
    "scatter", "scatter_add", "scatter_reduce", "gather_backward", "index_select_backward",
    "cumsum", "logcumsumexp", "histc", "bincount", "kthvalue", "median", "nanmedian",
    "repeat_interleave", "embedding_dense_backward", "_embedding_bag", "masked_scatter",
    "nll_loss_forward", "nll_loss2d_forward", "reflection_pad1d_backward",
    "replication_pad1d_backward", "grid_sampler_2d_backward", "upsample_linear1d_backward",
)  # fmt: skip
FORBIDDEN = frozenset((*PRODUCTS, *UNORDERED))


class OnlyDeterministic(TorchDispatchMode):
    """Within it, an op of `FORBIDDEN` raises; an op of ours is one op, whatever it is made of."""

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name.removesuffix("_") in FORBIDDEN:
            raise AssertionError(f"{name} is not deterministic on CUDA, or raises where it must be")
        return func(*args, **(kwargs or {}))
