"""Gradients over several TPUs: each takes a share of the batch.

The compiler cannot partition a Pallas kernel by itself ("Mosaic kernels cannot be automatically
partitioned"), so a jitted step with a sharded batch does not compile. Under ``jax.shard_map`` each
device runs the kernels on its own share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.tpu.torchax import load_torchax

AXIS = "data"


def data_parallel(
    loss: Callable[..., Any], devices: Sequence[Any] | None = None
) -> Callable[..., Any]:
    """The loss and its gradients, averaged over several devices.

    Each device counts the same: where a loss is an average over tokens, of which the shares of the
    batch have different numbers, that is not the average over all of them.

    Args:
        loss: from parameters and a batch, trees of ``torch.Tensor`` under torchax, to one number.
        devices: JAX's, of which the batch's length is a multiple; default: all there are.

    Returns:
        From parameters, a batch (trees of JAX arrays, the batch's with the batch first) and a key
        of ``jax.random`` to (loss, gradients); compiled, alone or as a part of a jitted step. A
        device draws its dropout from the key and its number.

    Raises:
        BackendUnavailable: JAX or torchax is missing, or does not import.
        ArgumentError: there is no device; of what is returned, a tensor of PyTorch's in a tree, or
            a key that is none. ShapeError: a batch that cannot be shared out evenly.
    """
    interop, environment = load_torchax()
    import jax
    import numpy as np
    from jax.sharding import Mesh, PartitionSpec

    devices = jax.devices() if devices is None else devices
    if not isinstance(devices, Sequence) or not devices:
        raise ArgumentError(f"devices is {devices!r}, expected some of jax.devices(), as a list")
    count = len(devices)
    mesh = Mesh(np.array(devices), (AXIS,))
    of_arrays = interop.jax_view(loss)

    def of_a_share(parameters: Any, batch: Any, key: Any) -> Any:
        own_key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        with environment.override_property(prng=own_key):
            found = jax.value_and_grad(of_arrays)(parameters, batch)
        return jax.lax.pmean(found, AXIS)

    of_shares = jax.jit(
        jax.shard_map(
            of_a_share,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,  # of kernels JAX cannot tell which devices' results differ
        )
    )

    def of_all(parameters: Any, batch: Any, key: Any) -> Any:
        _check(parameters, batch, key, count)
        return of_shares(parameters, batch, key)

    return of_all


def _check(parameters: Any, batch: Any, key: Any, devices: int) -> None:
    import jax

    if any(isinstance(x, torch.Tensor) for x in jax.tree.leaves((parameters, batch))):
        raise ArgumentError(
            "parameters and batch have tensors of PyTorch, expected trees of JAX arrays, as "
            "torchax.default_env().t2j_copy(tree) makes them"
        )
    for x in jax.tree.leaves(batch):
        if not x.shape or x.shape[0] == 0 or x.shape[0] % devices:
            raise ShapeError(
                f"the batch has an array of shape {tuple(x.shape)}, expected a first size that "
                f"is a multiple of the {devices} devices"
            )
    if not isinstance(key, jax.Array):
        raise ArgumentError(f"key is {key!r}, expected one of jax.random.key(0)")
