"""Which backend runs an op: a capability table and one pure function.

``choose`` never touches a tensor or a GPU; it maps a :class:`Request` to a :class:`Choice`, so that
it can be traced, tested and explained. An explicit backend that cannot run raises. What a request
says of a tensor's GPU, its caller asks of ``gpu_of``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels import cpu as cpu_kernels
from xlnet_fast.kernels import cuda as cuda_kernels
from xlnet_fast.kernels.cuda.memory import why_misaligned

OPS = ("rel_attention", "two_stream_attention", "masked_softmax", "concat_memory")
"""What backends are chosen for. ``concat_memories`` is ``concat_memory`` of several layers: it asks
for that."""

ATTENTION = ("rel_attention", "two_stream_attention")
"""Those whose operands have a head dim."""

_HALF = (torch.float16, torch.bfloat16)
_FLOATS = (*_HALF, torch.float32, torch.float64)

MEASURED_GPUS: dict[str, tuple[str, ...]] = {"cuda": (), "triton": ()}
"""GPU kernels and the compute capabilities ("9.0") on which ``benchmarks/results`` holds a green
record, of "cuda" one that is faster than that of "triton". ``auto`` takes a GPU kernel only where
it is listed here."""


@dataclass(frozen=True)
class Capability:
    """What one backend can do. ``ops`` maps an op to whether it has a backward pass."""

    name: str
    ops: dict[str, bool]
    devices: tuple[str, ...] | None  # None: any
    dtypes: tuple[torch.dtype, ...]
    narrower: dict[str, tuple[torch.dtype, ...]] = field(default_factory=dict)  # of single ops
    head_dims: tuple[int, int] = (1, 2**31)
    head_dim_step: int = 1
    aligned: bool = False  # whether operands of attention must have rows of whole 16 bytes
    needs: str | None = None  # an importable module
    gpu_kernel: bool = False
    obstacle: Callable[[], str | None] | None = None  # why it cannot run on this machine


# In the order in which ``auto`` prefers them.
CAPABILITIES = (
    Capability(
        "cuda",
        ops=dict.fromkeys(OPS, True),
        devices=("cuda",),
        dtypes=(*_HALF, torch.float32),
        narrower=dict.fromkeys(ATTENTION, _HALF),
        head_dims=(8, 128),
        head_dim_step=8,
        aligned=True,
        gpu_kernel=True,
        obstacle=cuda_kernels.why_missing,
    ),
    Capability(
        "triton",
        ops=dict.fromkeys(OPS, True),
        devices=("cuda",),
        dtypes=(*_HALF, torch.float32),
        head_dims=(16, 128),
        needs="triton",
        gpu_kernel=True,
    ),
    Capability(
        "cpu",
        ops=dict.fromkeys(("rel_attention", "two_stream_attention", "masked_softmax"), True),
        devices=("cpu",),
        dtypes=(*_HALF, torch.float32),
        obstacle=cpu_kernels.why_unavailable,
    ),
    Capability("sdpa", dict.fromkeys(OPS, True), devices=("cpu", "cuda"), dtypes=_FLOATS),
    Capability("reference", dict.fromkeys(OPS, True), devices=None, dtypes=_FLOATS),
)
BACKENDS = tuple(capability.name for capability in CAPABILITIES)


@dataclass(frozen=True)
class Request:
    """What decides a choice: no tensors, only their properties."""

    op: str
    device: str
    dtype: torch.dtype
    head_dim: int = 64
    needs_grad: bool = False
    gpu: str | None = None  # compute capability, as "9.0"
    misaligned: str | None = None  # which operand's rows are not whole pieces of 16 bytes, and why


@dataclass(frozen=True)
class Choice:
    """The backend that runs, and why it and not an earlier one."""

    backend: str
    reason: str


def choose(request: Request, backend: str = "auto") -> Choice:
    """The backend for a request.

    Args:
        request: the op and its operands' properties.
        backend: "auto", or a backend's name.

    Raises:
        ArgumentError: no backend has that name.
        BackendUnavailable: the named backend cannot run this request; the message says why.
    """
    if backend != "auto":
        for capability in CAPABILITIES:
            if capability.name == backend:
                obstacle = why_not(capability, request)
                if obstacle is not None:
                    raise BackendUnavailable(
                        f"backend {backend!r} cannot run {request.op}: {obstacle}"
                    )
                return Choice(backend, "asked for by name")
        known = ", ".join(("auto", *BACKENDS))
        raise ArgumentError(f"unknown backend {backend!r}, expected one of: {known}")
    passed_over: list[str] = []
    for capability in CAPABILITIES:
        obstacle = why_not(capability, request) or _not_measured(capability, request)
        if obstacle is None:
            return Choice(capability.name, "; ".join(passed_over) or "first choice here")
        passed_over.append(f"{capability.name}: {obstacle}")
    raise BackendUnavailable(f"no backend can run {request.op}: " + "; ".join(passed_over))


def why_not(capability: Capability, request: Request) -> str | None:
    """Why a backend cannot run a request, None when it can."""
    if request.op not in capability.ops:
        return f"it has no {request.op}"
    if capability.devices is not None and request.device not in capability.devices:
        return f"it runs on {' and '.join(capability.devices)}, not on {request.device}"
    dtypes = capability.narrower.get(request.op, capability.dtypes)
    if request.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"it takes {names}, not {str(request.dtype).removeprefix('torch.')}"
    if request.op in ATTENTION:
        low, high = capability.head_dims
        if not low <= request.head_dim <= high:
            return f"it takes head dims {low} to {high}, not {request.head_dim}"
        step = capability.head_dim_step
        if request.head_dim % step != 0:
            return f"it takes head dims in steps of {step}, not {request.head_dim}"
        if capability.aligned and request.misaligned is not None:
            return f"it cannot read {request.misaligned}"
    if request.needs_grad and not capability.ops[request.op]:
        return "it has no backward pass yet, and a gradient is needed"
    if capability.needs is not None and not _importable(capability.needs):
        return f"the module {capability.needs!r} is not installed"
    return None if capability.obstacle is None else capability.obstacle()


def lacks_extension(request: Request) -> bool:
    """Whether backend cpu would run a request, were the compiled extension there."""
    if request.device != "cpu" or cpu_kernels.why_unavailable() is None:
        return False
    (capability,) = (capability for capability in CAPABILITIES if capability.name == "cpu")
    return why_not(replace(capability, obstacle=None), request) is None


def named_or_auto(op: str, backend: str) -> str:
    """A backend's name where it has this op, else "auto": a model's backend names its attention."""
    for capability in CAPABILITIES:
        if capability.name == backend and op not in capability.ops:
            return "auto"
    return backend


def _not_measured(capability: Capability, request: Request) -> str | None:
    if not capability.gpu_kernel or request.gpu in MEASURED_GPUS[capability.name]:
        return None
    where = "this GPU" if request.gpu is None else f"compute capability {request.gpu}"
    return f"no measurement on {where} yet; ask for it with backend={capability.name!r}"


def gpu_of(x: torch.Tensor) -> str | None:
    """The compute capability of a CUDA tensor's device, as ``Request.gpu`` wants it, else None."""
    if x.device.type != "cuda" or not torch.cuda.is_available():
        return None
    return "{}.{}".format(*torch.cuda.get_device_capability(x.device))


def misalignment_of(operands: Mapping[str, torch.Tensor | None], backend: str) -> str | None:
    """Which operand backend cuda cannot read and why, as ``Request.misaligned`` wants it.

    None without looking where that backend will not be chosen.
    """
    first = next(x for x in operands.values() if x is not None)
    measured = MEASURED_GPUS["cuda"]
    if backend != "cuda" and (backend != "auto" or not measured or gpu_of(first) not in measured):
        return None
    for name, x in operands.items():
        reason = None if x is None or x.numel() == 0 else why_misaligned(x)
        if reason is not None:
            return f"{name}: {reason}"
    return None


@cache
def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
