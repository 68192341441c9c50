"""Which compilations Triton would make: launches recorded instead of run, on CPU tensors.

A kernel is compiled once for every set of argument types, alignments and constants. Within
`recording()` the package's Triton kernels do nothing but leave the key that Triton's own code makes
of their arguments, for a chip that need not be here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

CAPABILITY = 90
# Where the launchers look a kernel up.
_KERNELS = {
    "rel_attention_forward": ("_forward_kernel",),
    "rel_attention_backward": ("_backward_q_kernel", "_backward_kv_kernel"),
    "masked_softmax": ("_forward_kernel", "_backward_kernel"),
    "concat_memory": ("_copy_kernel",),
}

Key = tuple[str, str]
"""A kernel's name, and what of its arguments decides the compilation."""


class Recorder:
    """Stands for a jit function: keeps the key of each launch."""

    def __init__(self, name: str, function: Any, keys: list[Key]) -> None:
        self._name, self._function, self._keys = name, function, keys

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*values: Any, **constants: Any) -> None:
            _, specialisation, options = _binder(self._function)(*values, **constants)
            self._keys.append((self._name, repr((specialisation, sorted(options.items())))))

        return launch


@cache
def _binder(function: Any) -> Callable[..., tuple[Any, Any, dict[str, Any]]]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", CAPABILITY, 32))
    return create_function_from_signature(function.signature, function.params, backend)


@contextlib.contextmanager
def recording() -> Iterator[list[Key]]:
    """Within the block a launch of any of the package's Triton kernels only adds its key to a list.

    The arguments may be tensors on a CPU; tiles are those of a chip of `CAPABILITY` (as an integer,
    90 for 9.0) that was not measured.
    """
    from importlib import import_module

    folder = "xlnet_fast.kernels.triton"
    keys: list[Key] = []
    changed: list[tuple[Any, str, Any]] = []
    for module_name, names in _KERNELS.items():
        module = import_module(f"{folder}.{module_name}")
        for name in names:
            function = getattr(module, name)
            kernel = module_name.removesuffix("_forward").removesuffix("_backward") + name
            changed.append((module, name, Recorder(kernel, function, keys)))
    for module_name in ("launch", "masked_softmax_launch", "concat_memory"):
        changed.append((import_module(f"{folder}.{module_name}"), "why_unavailable", _available))
    with contextlib.ExitStack() as stack:
        for module, name, value in changed:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield keys


def _available(device: torch.device | str = "cuda") -> None:
    """In place of `why_unavailable`: nothing runs, so nothing is missing."""
