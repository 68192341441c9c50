"""The projection of a table of positions, once for a batch, and kept from call to call.

A speech encoder's table depends on the number of frames alone, so in inference its projection does
too. It is kept on a CPU, where it is a few percent of an encoder's work and where looking at the
weight costs next to nothing: whatever wrote to the weight, its sum tells. On a GPU that look would
wait for the device, and the table is projected at each call.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xlnet_fast.nn.linear import is_plain_linear
from xlnet_fast.nn.projection import project
from xlnet_fast.transforms import are_plain, nobody_looks_on

MOST_KEPT_BYTES = 8 << 20
"""Of one layer: the tables of a minute of Parakeet, and a twentieth of its weights."""

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Kept(NamedTuple):
    storage: Any  # of the table, kept so that no other has its address
    source: tuple[Any, ...]
    weight: tuple[Any, ...]
    first: int  # element of the storage
    projected: Tensor  # (1, P, N, D)


_KEPT: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def projected_table(projection: Any, table: Tensor, heads: int) -> Tensor:
    """Rows of a table of positions as keys of every head.

    Args:
        projection: from width H to N * D.
        table: (B, P, H); one that was expanded over the batch, or B = 1, is projected once.
        heads: N.

    Returns:
        (G, P, N, D), G = 1 or B.
    """
    if table.shape[0] > 1 and table.stride(0) == 0:
        table = table[:1]
    if not _can_keep(projection, table):
        return project(projection, table).unflatten(-1, (heads, -1))
    weight: Tensor = projection.weight
    storage = table.untyped_storage()
    source = (storage.data_ptr(), table._version, table.stride(1), table.dtype, heads)
    of_weight = (weight.data_ptr(), weight.dtype, weight.shape, _sum_of(weight))
    first, rows = int(table.storage_offset()), table.shape[1]
    kept = _KEPT.get(projection)
    if kept is not None and kept.source == source and kept.weight == of_weight:
        begin, within = divmod(first - kept.first, table.stride(1))
        if within == 0 and 0 <= begin <= kept.projected.shape[1] - rows:
            return kept.projected[:, begin : begin + rows]
    with torch.inference_mode(False), torch.no_grad():
        projected = project(projection, table).unflatten(-1, (heads, -1))
    _KEPT[projection] = _Kept(storage, source, of_weight, first, projected)
    return projected


def _can_keep(projection: Any, table: Tensor) -> bool:
    if torch.is_grad_enabled() or table.device.type != "cpu" or not nobody_looks_on():
        return False
    if not is_plain_linear(projection) or projection.bias is not None:
        return False
    weight: Tensor = projection.weight
    return (
        table.shape[0] == 1
        and table.stride(2) == 1
        and weight.is_contiguous()
        and weight.device == table.device
        and weight.dtype == table.dtype
        and not torch.is_autocast_enabled("cpu")
        and are_plain((table, weight))
        and not (table.is_inference() or weight.is_inference())
        and table.shape[1] * weight.shape[0] * weight.element_size() <= MOST_KEPT_BYTES
    )


def _sum_of(weight: Tensor) -> int:
    """Of the bits of all elements as integers, exact: a change of one of them changes it."""
    return int(weight.detach().view(_INTEGERS[weight.element_size()]).sum())
