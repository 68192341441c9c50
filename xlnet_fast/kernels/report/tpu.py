"""Compiling for TPUs that are not here, and what the compiler says of a program.

libtpu compiles for a topology, not a device. JAX runs on the CPU meanwhile, also where a TPU is,
unless JAX_PLATFORMS says otherwise.
The figures are the compiler's: nothing is run, so nothing is measured.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.report.jobs import expect_known

TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
"""A topology of each generation that any libtpu knows; programs take one device of it."""

_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # the compiler would ask a cloud for its machine
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it locks a TPU, and there is none
    # Without these it prints that it found neither; what is compiled is the topology's.
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
KERNEL = "tpu_custom_call"
"""What a Pallas kernel is called in a lowered program and in a compiled one."""
_TARGET = f'custom_call_target="{KERNEL}"'
_CONFIG = "backend_config="


class Kernel(NamedTuple):
    """A Pallas kernel in a compiled program."""

    name: str  # of its pallas_call
    vmem_bytes: int  # scoped VMEM that the compiler gave it
    accessed_bytes: int  # of main memory, by the kernel's own estimate, and so are these:
    flops: int


class Figures(NamedTuple):
    """What the compiler says of a program."""

    temporary_bytes: int  # of main memory, beside arguments and results
    accessed_bytes: int  # of all operations, kernels by their own estimates
    flops: int
    compile_seconds: float
    kernels: tuple[Kernel, ...] | None  # None where libtpu cannot print what it compiled


def require_compiler(*others: str) -> None:
    """Make JAX and libtpu ready to compile.

    Raises:
        BackendUnavailable: one of them is missing, or one of the other packages.
    """
    if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
        for name, value in _WITHOUT_TPU.items():
            os.environ.setdefault(name, value)
    for name in ("jax", "libtpu", *others):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise BackendUnavailable(
                f"{name} cannot be imported ({error}); `pip install xlnet-fast[tpu]` brings JAX "
                "with the compiler for TPUs, which needs none"
            ) from error


@cache
def sharding(chip: str) -> Any:
    """Where the arrays of a program are that is to be compiled for one device of this chip.

    Raises:
        BackendUnavailable: as `require_compiler`.
        ArgumentError: a chip that is not in `TOPOLOGIES`.
    """
    expect_known("chip", [chip], list(TOPOLOGIES))
    require_compiler()
    import jax
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(TOPOLOGIES[chip], "tpu")
    return jax.sharding.SingleDeviceSharding(topology.devices[0])


def compile_lowered(lowered: Any) -> Figures:
    """Compile what `jax.jit(function).lower(*shapes)` gave for shapes with a chip's sharding."""
    begin = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - begin
    costs, memory = program.cost_analysis(), program.memory_analysis()
    kernels: tuple[Kernel, ...] | None = ()
    if KERNEL in lowered.as_text():
        try:
            kernels = tuple(parse_kernels(program.as_text()))
        except RuntimeError:  # some asynchronous copies of libtpu 0.0.52 have no text
            kernels = None
    return Figures(
        temporary_bytes=memory.temp_size_in_bytes,
        accessed_bytes=int(costs.get("bytes accessed", 0)),  # what is zero is left out
        flops=int(costs.get("flops", 0)),
        compile_seconds=round(seconds, 1),
        kernels=kernels,
    )


def parse_kernels(text: str) -> Iterator[Kernel]:
    """The Pallas kernels of a compiled program, by its text."""
    for line in text.splitlines():
        if _TARGET not in line:
            continue
        config, _ = json.JSONDecoder().raw_decode(line, line.index(_CONFIG) + len(_CONFIG))
        path = re.search(r'op_name="([^"]*)"', line)
        name = re.search(r"xlnet_\w+", path[1]) if path else None
        estimate = config["custom_call_config"]["cost_estimate"]
        yield Kernel(
            name=name[0] if name else "unnamed",
            vmem_bytes=sum(int(used["size"]) for used in config["used_scoped_memory_configs"]),
            accessed_bytes=int(estimate["bytes_accessed"]),
            flops=int(estimate["flops"]),
        )


def occurrences(text: str, pattern: str) -> int:
    """How often a lowered program does what matches: a function called twice counts twice."""
    bodies = {
        found[1]: body
        for body in re.split(r"^ *(?=func\.func )", text, flags=re.MULTILINE)
        if (found := re.match(r"func\.func (?:\w+ )?@([\w.]+)", body))
    }

    @cache
    def of(name: str) -> int:
        body = bodies[name]
        called = re.findall(r"\bcall @([\w.]+)\(", body)
        return len(re.findall(pattern, body)) + sum(map(of, called))

    return of("main")
