"""For which devices an outer framework was told how to lower our ops, by ``xlnet_fast.tpu``.

What chooses a backend reads it here, without loading JAX.
"""

from __future__ import annotations

REMEDIES = {
    "jax": "xlnet_fast.tpu.register()",
    "tpu": "xlnet_fast.tpu.torchtpu.register()",
}
"""Type of a device -> the call that makes its framework know the TPU kernels."""

TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
"""Generations that the TPU kernels are compiled for, as ``register`` has them by name."""

_registered: set[str] = set()


def registered(device: str) -> None:
    """Note that the ops of a type of device are lowered."""
    _registered.add(device)


def why_missing(device: str) -> str | None:
    """Why ops on a type of device are not lowered; None where they are."""
    if device in _registered:
        return None
    return f"its kernels are not registered; call {REMEDIES[device]}"
