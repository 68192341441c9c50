"""Programs of ``torch.export`` as programs of XLA: lowered by torchax, written and run by JAX.

JAX and torchax are imported here, so only what has made sure of them may import this.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import torch
import torchax
from safetensors.flax import load_file
from torch import Tensor
from torchax.export import exported_program_to_jax
from torchax.ops import mappings, ops_registry

from xlnet_fast.export.check import Ranges, Run
from xlnet_fast.export.source import INPUTS
from xlnet_fast.kernels.pallas import registered
from xlnet_fast.kernels.report import tpu

_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclass(frozen=True)
class Lowered:
    """A program as a JAX function.

    Attributes:
        weights: by name, in the order of their first use; tied ones once.
        function: of a dict of the weights and the three inputs, each (batch, length) int32.
        attentions: how many calls of our attention are in it.
    """

    weights: dict[str, Tensor]
    function: Callable[..., tuple[jax.Array, ...]]
    attentions: int


def lower(program: Any) -> Lowered:
    """A JAX function of an ``ExportedProgram``; what our ops become, its tracing decides."""
    torchax.default_env()  # whose making registers torchax's lowerings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about how torchax calls it
        names, states, function = exported_program_to_jax(program, export_raw=True)
    names = [*names, *program.graph_signature.lifted_tensor_constants]
    first: dict[tuple[int, torch.Size], str] = {}
    used = [
        first.setdefault((x.data_ptr(), x.shape), name)
        for name, x in zip(names, states, strict=True)
    ]
    weights = {
        name: (x if x.is_floating_point() else x.int()).detach().contiguous()
        for name, x in zip(names, states, strict=True)
        if name in used
    }

    def run(weights: dict[str, jax.Array], *given: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(function([weights[name] for name in used], given))

    attentions = sum("xlnet_fast" in str(node.target) for node in program.graph.nodes)
    return Lowered(weights, run, attentions)


def shapes(lowered: Lowered, ranges: Ranges, sharding: Any = None) -> list[Any]:
    """The arguments of the function without their values; what is free of a shape is a symbol."""

    def of(shape: Sequence[Any], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)

    weights = {n: of(x.shape, mappings.t2j_dtype(x.dtype)) for n, x in lowered.weights.items()}
    rows: Any = ranges.max_batch
    length: Any = ranges.max_length
    if not ranges.fixed:
        limits = [
            f"length >= {ranges.least_length}",
            f"length <= {ranges.max_length}",
            f"batch <= {ranges.max_batch}",
            "length^2 >= length",  # JAX does not know; the shift of rows takes one from the other
        ]
        rows, length = jax.export.symbolic_shape("batch, length", constraints=limits)
        if ranges.max_batch == 1:
            rows = 1
    return [weights, *(of((rows, length), jnp.int32) for _ in INPUTS)]


def export(
    lowered: Lowered,
    ranges: Ranges,
    platform: str,
    precision: str,
    chip: str | None = None,
    interpret: bool = False,
) -> jax.export.Exported:
    """The function for one platform.

    Args:
        precision: ``jax_default_matmul_precision`` of all products outside our kernels, which
            choose for themselves.
        chip, interpret: of our kernels.
    """
    # A function of its own: JAX would take what it traced of the same one with other kernels.
    function = jax.jit(lambda *arguments: lowered.function(*arguments))
    with _attention_lowered(chip, interpret), jax.default_matmul_precision(precision):
        return jax.export.export(function, platforms=[platform])(*shapes(lowered, ranges))


@contextlib.contextmanager
def _attention_lowered(chip: str | None, interpret: bool) -> Iterator[None]:
    """Our ops are the Pallas kernels here; after it what they were before.

    ``xlnet_fast.tpu.register`` is for a whole process, and tells the dispatcher.
    """
    ops = ops_registry.all_aten_ops
    before = dict(ops)
    try:
        for name, function in registered.functions(chip=chip, interpret=interpret).items():
            op = getattr(torch.ops.xlnet_fast, name).default
            ops.pop(op, None)  # else torchax warns
            ops_registry.register_torch_dispatch_op(op, function, is_user_defined=True)
        yield
    finally:
        ops.clear()
        ops.update(before)


def read(path: Path) -> jax.export.Exported:
    """The program of a file."""
    return jax.export.deserialize(bytearray(path.read_bytes()))


def reread(exported: jax.export.Exported) -> jax.export.Exported:
    """A program as a file would give it back."""
    return jax.export.deserialize(exported.serialize())


def runner(
    exported: jax.export.Exported, weights: Path, device: Any, interpreted: bool = False
) -> Run:
    """A program on a device as a function of torch tensors; integers come back in int64.

    Args:
        interpreted: its kernels are, and are run a few times: XLA would optimise them for minutes.
    """
    with jax.default_device(device):
        values = load_file(weights)
    call = jax.jit(exported.call, compiler_options=_QUICKLY if interpreted else None)

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        with jax.default_device(device):
            return tuple(map(_to_torch, call(values, *(x.int().numpy() for x in given))))

    return run


def _to_torch(x: jax.Array) -> Tensor:
    if x.dtype == jnp.bfloat16:
        return torch.from_numpy(np.array(x.astype(jnp.float32))).bfloat16()
    found = torch.from_numpy(np.array(x))
    return found if found.is_floating_point() else found.long()


def cpu() -> Any:
    """The device, whatever else JAX has."""
    return jax.devices("cpu")[0]


def attached_tpu() -> Any | None:
    """The TPU that JAX runs on, None where it has none."""
    device = jax.devices()[0]
    return device if device.platform == "tpu" else None


def compiled(exported: jax.export.Exported, lowered: Lowered, ranges: Ranges, chip: str) -> Any:
    """What the TPU's compiler says of a program for a chip that is not here.

    Raises:
        BackendUnavailable: libtpu is missing.
    """
    there = shapes(lowered, ranges, tpu.sharding(chip))
    return tpu.compile_lowered(jax.jit(exported.call).lower(*there))
