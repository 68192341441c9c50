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

    A device's memory decides, so that the same GPU forms the same sums in every run. Only where
    less than a quarter of it is free when a process first asks does a block take half of that;
    under deterministic algorithms not even then.
    """
    held = _bytes(device) // bytes_per_score
    return min(MOST_SCORES, max(FEWEST_SCORES, held))


def _bytes(device: torch.device) -> int:
    """What a block may hold; what is free is asked once per device and process."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 2**40  # a fake tensor: nothing is held
    index = torch.cuda.current_device() if device.index is None else device.index
    share = int(torch.cuda.get_device_properties(index).total_memory) // SHARE
    if torch.are_deterministic_algorithms_enabled():
        return share
    if index not in _decided:
        if torch.cuda.is_current_stream_capturing():
            return share  # asking is no part of a graph
        unused = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        _decided[index] = min(share, (torch.cuda.mem_get_info(index)[0] + unused) // 2)
    return _decided[index]
