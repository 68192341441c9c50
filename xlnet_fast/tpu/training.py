"""Gradients over several TPUs: each takes a share of the batch.

The compiler cannot partition a Pallas kernel by itself ("Mosaic kernels cannot be automatically
partitioned"), so a jitted step with a sharded batch does not compile. Under ``jax.shard_map`` each
device runs the kernels on its own share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
        of ``jax.random`` to (loss, gradients); to be jitted. A device draws its dropout from the
        key and its number.

    Raises:
        BackendUnavailable: JAX or torchax is missing, or does not import.
    """
    interop, environment = load_torchax()
    import jax
    import numpy as np
    from jax.sharding import Mesh, PartitionSpec

    mesh = Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))
    of_arrays = interop.jax_view(loss)

    def of_a_share(parameters: Any, batch: Any, key: Any) -> Any:
        own_key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        with environment.override_property(prng=own_key):
            found = jax.value_and_grad(of_arrays)(parameters, batch)
        return jax.lax.pmean(found, AXIS)

    return jax.shard_map(
        of_a_share,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,  # of kernels JAX cannot tell which devices' results differ
    )
