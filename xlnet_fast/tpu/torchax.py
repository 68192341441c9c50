"""torchax lowers the registered ops of attention to the Pallas kernels.

It takes them in its eager mode, under ``torchax.interop`` and in programs of ``torch.export``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import xlnet_fast.ops  # noqa: F401  defines the ops
from xlnet_fast import lowering
from xlnet_fast.errors import ArgumentError, BackendUnavailable

INSTALL = (
    "pip install 'xlnet-fast[tpu]', and with it a torchax that knows this PyTorch (0.0.14.dev or "
    "later: pip install --pre torchax)"
)


def register(*, chip: str | None = None, interpret: bool = False) -> None:
    """Make torchax lower ``xlnet_fast::rel_attention`` and ``two_stream_attention`` to Pallas.

    From then on backend "auto" takes "pallas" for tensors on device "jax", and programs of
    ``torch.export``, whatever backend they were traced with, run it under torchax. Called again, it
    replaces what was registered. It makes torchax's environment, and with it JAX's backend: set
    JAX's options before.

    Args:
        chip: "v4", "v5e", "v5p", "v6e" or "tpu7x", for programs that are compiled for a TPU that is
            not here; default: the one that JAX runs on.
        interpret: run the kernels on the CPU, for tests.

    Raises:
        BackendUnavailable: JAX or torchax is missing, or does not import.
        ArgumentError: an unknown chip; or neither argument where JAX has no TPU.
    """
    interop, environment = load_torchax()
    import jax
    from torchax.ops import ops_registry as registry

    from xlnet_fast.kernels.pallas import chips, registered

    chips.find_chip(chip or "v4")  # an unknown name is told now
    platform = jax.default_backend()
    if platform != "tpu" and chip is None and not interpret:
        raise ArgumentError(
            f"JAX runs on {platform}, where the kernels can only be interpreted: "
            "register(interpret=True); or name the chip that programs are compiled for: "
            "register(chip='v5e')"
        )
    functions = registered.functions(chip=chip, interpret=interpret)
    for name, function in functions.items():
        op = getattr(torch.ops.xlnet_fast, name).default
        # Exported programs look into the registry, the environment has its own copy of it.
        registry.all_aten_ops.pop(op, None)
        registry.register_torch_dispatch_op(op, function, is_user_defined=True)
        environment.override_op_definition(op, partial(_call, interop.call_jax, function))
    lowering.registered("jax")


def _call(call_jax: Any, function: Any, *args: Any) -> Any:
    """``function`` on torchax's tensors; a seed that is on the CPU keeps its 64 bits."""
    return call_jax(function, *(int(x) if _is_number(x) else x for x in args))


def _is_number(x: Any) -> bool:
    is_of_the_cpu = isinstance(x, torch.Tensor) and x.device.type == "cpu"
    return is_of_the_cpu and x.numel() == 1 and x.dtype == torch.int64


def load_torchax() -> tuple[Any, Any]:
    """torchax's ``interop`` and environment.

    Raises:
        BackendUnavailable: JAX or torchax is missing, or does not import.
    """
    try:
        import torchax
        from torchax import interop
    except (ImportError, AttributeError) as error:
        raise BackendUnavailable(f"no JAX with torchax here ({error}): {INSTALL}") from error
    return interop, torchax.default_env()
