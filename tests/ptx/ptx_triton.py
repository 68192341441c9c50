"""The Triton kernels as Triton compiles them for a GPU, run by the PTX machine on CPU tensors.

Arguments are bound and specialised by Triton itself, so a launch compiles what the same launch
would on a GPU with tensors at the same addresses modulo 16. Compiling ends at PTX: the assembler is
not needed. The text is kept in `build/ptx/triton`, under the hash of what goes into it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import ptx_machine
import ptx_text
import torch

from xlnet_fast.builder import lock
from xlnet_fast.kernels.report import triton as report
from xlnet_fast.kernels.triton import launch as launch_module
from xlnet_fast.kernels.triton import triton

ARCH = 80
CACHE = Path(__file__).resolve().parents[2] / "build" / "ptx" / "triton"
TIMEOUT_S = 1200.0
_PACKAGE = "xlnet_fast.kernels.triton"


@dataclass(frozen=True)
class Compiled:
    """What a launch needs of a compilation."""

    name: str
    text: str
    num_warps: int
    shared_bytes: int


@contextmanager
def running(*, arch: int = ARCH, seed: int = 0) -> Iterator[Counter[str]]:
    """Within the block, launches of Triton kernels on CPU tensors run what is compiled for a GPU.

    The tensors must be those of `ptx_machine.memory`. Tiles are those for the GPU.

    Args:
        arch: 80 or 90: the GPU is an sm_80 or an sm_90.
        seed: of the order of warps.

    Yields:
        By the name of a kernel, how often it was launched.

    Raises:
        BackendUnavailable: Triton is missing or runs as an interpreter.
    """
    report.require_compiler()
    launched: Counter[str] = Counter()

    def run_kernel(function: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        compiled, values = _bound(function, arguments, options, arch)
        kernel = _loaded(compiled.text)[compiled.name]
        launched[f"{function.__module__.rpartition('.')[2]}.{function.__name__}"] += 1
        ptx_machine.launch(
            kernel,
            grid,
            compiled.num_warps * 32,
            _packed(kernel.kernel.parameters, values),
            shared_bytes=compiled.shared_bytes,
            seed=seed,
        )

    for name in report.MODULES:
        importlib.import_module(f"{_PACKAGE}.{name}")
    with ExitStack() as changes:
        for name, module in list(sys.modules.items()):
            if not name.startswith(_PACKAGE):
                continue
            if hasattr(module, "run_kernel"):
                changes.enter_context(mock.patch.object(module, "run_kernel", run_kernel))
            if hasattr(module, "why_unavailable"):
                found = _available_here(module.why_unavailable)
                changes.enter_context(mock.patch.object(module, "why_unavailable", found))
        # A sum over lanes has its own product unrounded (fused into the first addition) and another
        # lane's rounded, so that lanes differ in the last bit of what they store to one place.
        changes.enter_context(ptx_machine.open_stores())
        changes.enter_context(mock.patch.object(launch_module, "arch", return_value=arch))
        yield launched


def _available_here(
    why_unavailable: Callable[[torch.device | str], str | None],
) -> Callable[[torch.device | str], str | None]:
    def why(device: torch.device | str = "cuda") -> str | None:
        return None if torch.device(device).type == "cpu" else why_unavailable(device)

    return why


# --- compiling ------------------------------------------------------------------------------------


def compiled(source: Any, options: Mapping[str, Any], arch: int) -> Compiled:
    """An `ASTSource` compiled to PTX, or what an earlier process compiled of the same."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    parsed = backend.parse_options(dict(options) | source.parse_options())
    said = f"{triton.__version__}\n{arch}\n{source.hash()}\n{parsed.hash()}"
    path = CACHE / f"{source.name}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        wait_until_s = time.monotonic() + TIMEOUT_S
        with lock.held(path.with_suffix(".lock"), wait_until_s, on_wait=lambda: None):
            if not path.exists():
                made = _compile(source, backend, parsed, target)
                partial = path.with_name(f"{os.getpid()}-{path.name}")
                partial.write_text(json.dumps(vars(made)), encoding="utf-8")
                partial.replace(path)
    return Compiled(**json.loads(path.read_text(encoding="utf-8")))


def _compile(source: Any, backend: Any, options: Any, target: Any) -> Compiled:
    """Triton's stages as `triton.compile` has them, without the last, the assembler."""
    from triton._C.libtriton import ir

    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    metadata: dict[str, Any] = {"target": target, **vars(options)}
    stages: dict[str, Callable[[Any, dict[str, Any]], Any]] = {}
    backend.add_stages(stages, options, source.language)
    functions = backend.get_codegen_implementation(options)
    module = source.make_ir(target, options, functions, backend.get_module_map(), context)
    for stage, run in stages.items():
        module = run(module, metadata)
        if stage == "ptx":
            break
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        # Their pointers are null here.
        assert not metadata.get(scratch), f"{source.name} asks for {scratch} {metadata[scratch]}"
    return Compiled(metadata["name"], module, metadata["num_warps"], metadata["shared"])


@functools.cache
def _loaded(text: str) -> dict[str, ptx_machine.Loaded]:
    return ptx_machine.load(text)


# --- arguments ------------------------------------------------------------------------------------


@functools.cache
def _binder(function: Any, arch: int) -> tuple[Any, Any]:
    """How a GPU's Triton binds the arguments of a kernel, and the backend that it does it for."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", arch, 32))
    return create_function_from_signature(function.signature, function.params, backend), backend


_compilations: dict[Any, Compiled] = {}


def _bound(
    function: Any, arguments: tuple[Any, ...], options: dict[str, Any], arch: int
) -> tuple[Compiled, list[tuple[str, Any]]]:
    """The compilation for some arguments, and (type, value) of those that a launch passes."""
    from triton.compiler import ASTSource

    binder, backend = _binder(function, arch)
    bound, specialisation, of_compiler = binder(*arguments, **options)
    key = (function, arch, str(specialisation), str(of_compiler), str(_constants(function, bound)))
    parsed, signature, constants, attributes = function._pack_args(
        backend, options, bound, specialisation, of_compiler
    )
    if key not in _compilations:
        source = ASTSource(function, signature, constants, attributes)
        _compilations[key] = compiled(source, vars(parsed), arch)
    values = [pair for name, kind in signature.items() for pair in _flattened(kind, bound[name])]
    return _compilations[key], values


def _constants(function: Any, bound: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: bound[each.name] for each in function.params if each.is_constexpr}


def _flattened(kind: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """The values of an argument that are not constants of the compilation."""
    if isinstance(kind, tuple):
        for part, inner in zip(kind, value, strict=True):
            yield from _flattened(part, inner)
    elif kind != "constexpr":
        yield kind, value


def _packed(parameters: Sequence[ptx_text.Parameter], values: list[tuple[str, Any]]) -> bytes:
    """The .param space of a launch; Triton's own pointers to scratch memory, the last, are null."""
    own = parameters[len(values) :]
    assert [each.bytes for each in own] in ([], [8], [8, 8]), "more parameters than arguments"
    packed = bytearray(max((each.offset + each.bytes for each in parameters), default=0))
    for each, (kind, value) in zip(parameters, values, strict=False):
        packed[each.offset : each.offset + each.bytes] = _bytes_of(kind, value, each.bytes)
    return bytes(packed)


def _bytes_of(kind: str, value: Any, count: int) -> bytes:
    if isinstance(value, torch.Tensor):
        assert (kind[0], count) == ("*", 8), f"a tensor for {kind} of {count} bytes"
        return struct.pack("<Q", value.data_ptr())
    if kind == "fp32":
        assert count == 4, f"{kind} of {count} bytes"
        return struct.pack("<f", value)
    assert kind[0] in "iu", f"no launch of this project passes a {kind}"
    return int(value).to_bytes(count, "little", signed=kind[0] == "i" and kind != "i1")
