"""torch.library contract of dropout's keep mask on a GPU: one launch where Triton can make it.

:func:`xlnet_fast.philox.keep_mask` calls the op for CUDA tensors, so whoever wants a mask gets it:
attention, softmax, dropout of hidden states. The Triton kernel is compared with the ATen form once
per device, bit for bit, when a process first makes a mask there, which waits for the GPU that once;
where it differs or fails, it is left alone and one warning says so. While a CUDA graph is captured
nothing can be compared: until a mask was made outside of one, the ATen form is what is captured.

Tracers that take a graph apart (``torch.compile`` of the reference, export, ``make_fx``) do not
meet this op: :mod:`xlnet_fast.philox` gives them plain ATen.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

from xlnet_fast import philox
from xlnet_fast.ops._contracts._registry import LIBRARY, register
from xlnet_fast.ops.qualification.telling import warn_once

LIBRARY.define(
    "keep_mask(Tensor seed, int threshold, SymInt heads, SymInt first_row, SymInt last_row, "
    "SymInt keys, SymInt first_element, SymInt last_element) -> Tensor"
)
_CASES = (  # threshold, heads, rows, keys, batch elements: ragged tiles, and a whole one
    (philox.keep_threshold(0.1), 3, (5, 28), 133, (1, 3)),
    (philox.keep_threshold(0.9), 1, (0, 16), 256, (0, 1)),
)
_SEEDS = (0x243F6A8885A308D3, -1)

_differs: dict[int, bool] = {}
"""By a device's index, whether the kernel cannot be used there; no entry before it was compared."""


def _keep_mask(seed: Tensor, threshold: int, heads: int, *region: int) -> Tensor:
    first_row, last_row, keys, first_element, last_element = region
    rows, batch = (first_row, last_row), (first_element, last_element)
    if _can_use_kernel(seed.device):
        from xlnet_fast.kernels.triton import philox as kernel

        return kernel.keep_mask(seed, threshold, heads, rows, keys, batch)
    return philox.keep_mask_aten(seed.reshape(()), threshold, heads, rows, keys, batch, seed.device)


def _fake_keep_mask(seed: Tensor, threshold: int, heads: int, *region: int) -> Tensor:
    first_row, last_row, keys, first_element, last_element = region
    shape = (last_element - first_element, heads, last_row - first_row, keys)
    return seed.new_empty(shape, dtype=torch.bool)


def _can_use_kernel(device: torch.device) -> bool:
    """Whether the Triton kernel was found to make the ATen form's bits on this device."""
    index = device.index or 0
    if index not in _differs:
        if _is_capturing(device):
            return False
        problem = _problem(device)
        _differs[index] = problem is not None
        if problem is not None:
            warn_once(
                f"dropout masks on {device} are made by plain PyTorch, which takes hundreds of "
                f"launches each: the Triton kernel {problem}"
            )
    return not _differs[index]


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _problem(device: torch.device) -> str | None:
    """What is wrong with the kernel on a device, or None."""
    from xlnet_fast.kernels.triton import philox as kernel

    for value in _SEEDS:
        seed = torch.full((), value, dtype=torch.int64, device=device)
        for case in _CASES:
            try:
                made = kernel.keep_mask(seed, *case)
            except Exception as error:  # a compiler's or driver's, of many types
                return f"fails ({type(error).__name__}: {error})"
            if not torch.equal(made, philox.keep_mask_aten(seed, *case, device)):
                return "makes other bits"
    return None


def keep_mask_on_gpu(
    seed: Tensor,
    threshold: int,
    heads: int,
    rows: tuple[int, int],
    keys: int,
    batch_range: tuple[int, int],
) -> Tensor | None:
    """A mask by the op, or None where it cannot be: no Triton, sizes beyond 32 bits."""
    if not _has_triton() or max(rows[1], batch_range[1] * heads, keys) >= 2**31:
        return None
    mask: Tensor = torch.ops.xlnet_fast.keep_mask(
        seed.reshape(1), threshold, heads, *rows, keys, *batch_range
    )
    return mask


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


register("keep_mask", _keep_mask, _fake_keep_mask)
philox.make_on_gpu = keep_mask_on_gpu
