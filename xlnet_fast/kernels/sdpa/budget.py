"""How many scores backend ``sdpa`` holds at once on a GPU."""

from __future__ import annotations

import torch

MOST_SCORES = 2**30
"""Of one block, on any device: 2 GiB in half precision."""
FEWEST_SCORES = 2**22
"""Below this a block's launches take longer than its work."""
FORWARD_TENSORS, BACKWARD_TENSORS = 3, 4
"""Tensors as large as the scores that a pass holds at its peak, rounded up."""
SHARE = 8
"""A block takes at most one part in so many of a device's memory, and half of what is free."""

_decided: dict[int, int] = {}


def scores(device: torch.device, bytes_per_score: int) -> int:
    """Scores of a block on ``device``, for a pass that holds so many bytes for each.

    Decided by the device's memory alone, so that the same GPU adds up the same sums in every run;
    only where less than a quarter of a block's share of memory is free when a process first asks, by that.
    """
    held = _bytes(device) // bytes_per_score
    return min(MOST_SCORES, max(FEWEST_SCORES, held))


def _bytes(device: torch.device) -> int:
    """What a block may hold, decided once per device and process."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return MOST_SCORES * 8  # fake tensors; tests
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _decided:
        total = torch.cuda.get_device_properties(index).total_memory
        if torch.cuda.is_current_stream_capturing():
            return total // SHARE  # asking what is free is no part of a graph
        free = torch.cuda.mem_get_info(index)[0] + _reusable(index)
        _decided[index] = min(total // SHARE, free // 2)
    return _decided[index]


def _reusable(index: int) -> int:
    """Bytes that PyTorch's allocator holds and nobody uses."""
    return torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
