"""Which backend runs an op: a capability table, what was proved here, and one pure function.

``choose`` never touches a tensor or a GPU; it maps a :class:`Request` to a :class:`Choice`, so that
it can be traced, tested and explained. An explicit backend that cannot run raises. What a request
says of a device and of what was proved on it, :func:`request_for` asks.

``auto`` takes, of the backends that can run a request, the fastest that a record of
:mod:`xlnet_fast.ops.qualification` calls right; a GPU kernel that no record speaks for, never.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch

from xlnet_fast import lowering, transforms
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels import cpu as cpu_kernels
from xlnet_fast.kernels import cuda as cuda_kernels
from xlnet_fast.kernels.cuda.memory import why_misaligned
from xlnet_fast.ops.qualification import proof
from xlnet_fast.ops.qualification.record import covering, head_dim_class
from xlnet_fast.transforms import constant_when_traced

OPS = ("rel_attention", "two_stream_attention", "masked_softmax", "concat_memory")
"""What backends are chosen for. ``concat_memories`` is ``concat_memory`` of several layers: it asks
for that."""

ATTENTION = ("rel_attention", "two_stream_attention")
"""Those whose operands have a head dim."""

_HALF = (torch.float16, torch.bfloat16)
_FLOATS = (*_HALF, torch.float32, torch.float64)

BY_NAME = "asked for by name"

_BASELINE = 1.0
"""Speed of what runs where nothing is proved, which is what the speeds of a record are over."""


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
    lowered: bool = False  # whether an outer framework runs it, once it was told of our ops
    refuses: Mapping[str, str] = field(default_factory=dict)  # features of calls, and why
    # Why it, which can run here, cannot run a call of (gpu, head dim or None, needs_grad).
    unfit: Callable[[str | None, int | None, bool], str | None] | None = None
    plain: bool = False  # whether it is PyTorch's own code, which every transform knows


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
        unfit=cuda_kernels.why_unfit,
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
        "pallas",
        ops=dict.fromkeys(ATTENTION, True),
        devices=tuple(lowering.REMEDIES),
        dtypes=(torch.bfloat16, torch.float32),
        head_dims=(1, 128),
        lowered=True,
        refuses={"bits": "it takes no packed bits; say what they hide by ranks, causal or window"},
    ),
    Capability(
        "cpu",
        ops=dict.fromkeys(("rel_attention", "two_stream_attention", "masked_softmax"), True),
        devices=("cpu",),
        dtypes=(*_HALF, torch.float32),
        obstacle=cpu_kernels.why_unavailable,
    ),
    Capability("sdpa", dict.fromkeys(OPS, True), devices=("cpu", "cuda"), dtypes=_FLOATS),
    Capability("reference", dict.fromkeys(OPS, True), devices=None, dtypes=_FLOATS, plain=True),
)
BACKENDS = tuple(capability.name for capability in CAPABILITIES)
GPU_KERNELS = tuple(capability.name for capability in CAPABILITIES if capability.gpu_kernel)


@dataclass(frozen=True)
class Request:
    """What decides a choice: no tensors, only their properties.

    Attributes:
        device: its type. head_dim: of attention. needs_grad: whether a backward pass will come.
        gpu: compute capability, as "9.0"; None where there is none or nobody knows.
        misaligned: which operand's rows are not whole pieces of 16 bytes, and why.
        transform: what looks on, as ``transforms.needs_plain_code``.
        features: of the call, as in ``qualification.record.CLASSES``, sorted.
        proved: what this device's record says of the backends for such a call.
        unproved: why there is no record of this device; "" where there is one.
    """

    op: str
    device: str
    dtype: torch.dtype
    head_dim: int = 64
    needs_grad: bool = False
    gpu: str | None = None
    misaligned: str | None = None
    features: tuple[str, ...] = ()
    proved: tuple[proof.Verdict, ...] = ()
    unproved: str = ""
    transform: str = ""

    def verdict(self, backend: str) -> proof.Verdict | None:
        """What was proved of a backend; None where nothing was."""
        for found in self.proved:
            if found[0] == backend:
                return found
        return None


FAULT, UNPROVED, MISSING, SLOWER, UNABLE, ELSEWHERE = (
    "fault", "unproved", "missing", "slower", "unable", "elsewhere",
)  # fmt: skip
KINDS = (FAULT, UNPROVED, MISSING, SLOWER, UNABLE, ELSEWHERE)
"""Why a backend is passed over, what a user should know of first: it was wrong or raised; no record
speaks for it; it is not installed or compiled; it was measured to be slower; it cannot run such a
call; it has no such op, or none on such a device."""


@dataclass(frozen=True)
class PassedOver:
    """A backend that ``auto`` did not take. ``why`` ends with the remedy, after a semicolon."""

    backend: str
    kind: str  # of KINDS
    why: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.why}"


@dataclass(frozen=True)
class Choice:
    """The backend that runs, and why it and not an earlier one.

    Attributes:
        why: of this backend alone: what was measured, or who asked for it; "" where nothing was.
        passed_over: those that ``auto`` would sooner have taken, or measured to be slower.
        speed: over the plain path, measured on this device; None where it was not.
    """

    backend: str
    why: str = ""
    passed_over: tuple[PassedOver, ...] = ()
    speed: float | None = None

    @property
    def reason(self) -> str:
        """All of it in one line."""
        reasons = [self.why] if self.why else []
        return "; ".join([*reasons, *map(str, self.passed_over)]) or "first choice here"


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
                return Choice(backend, BY_NAME)
        check_backend(backend)
    return _choose_best(request)


def check_backend(backend: str) -> None:
    """Raise ArgumentError for a name that is neither "auto" nor a backend's."""
    if backend not in ("auto", *BACKENDS):
        known = ", ".join(("auto", *BACKENDS))
        raise ArgumentError(f"unknown backend {backend!r}, expected one of: {known}")


def _choose_best(request: Request) -> Choice:
    """The fastest backend that may run a request; of equals, the first of the table."""
    best: Choice | None = None
    fastest = -1.0
    passed_over: list[PassedOver] = []
    for capability in CAPABILITIES:
        name = capability.name
        obstacle = _obstacle(capability, request)
        if obstacle is not None:
            if best is None:
                passed_over.append(obstacle)
            continue
        speed = _speed(capability, request)
        if speed > fastest:
            if best is not None:
                slower = f"slower here ({best.why})"
                passed_over.append(PassedOver(best.backend, SLOWER, slower))
            verdict = request.verdict(name)
            measured, words = (None, "") if verdict is None else verdict[2:]
            best, fastest = Choice(name, words, speed=measured), speed
            if speed == math.inf:
                break  # nothing can be faster
    if best is None:
        reasons = "; ".join(map(str, passed_over))
        raise BackendUnavailable(f"no backend can run {request.op}: {reasons}")
    return replace(best, passed_over=tuple(passed_over))


def _speed(capability: Capability, request: Request) -> float:
    """Over the baseline: what was measured, or else the order of the table."""
    verdict = request.verdict(capability.name)
    if verdict is not None and verdict[2] is not None and capability.name != "sdpa":
        return verdict[2]
    if capability.name == "reference":
        return 0.0
    return _BASELINE if capability.name == "sdpa" else math.inf


def why_not(capability: Capability, request: Request) -> str | None:
    """Why a backend cannot run a request, None when it can."""
    for _, ask in _CAN_IT:
        if (why := ask(capability, request)) is not None:
            return why
    return None


def _obstacle(capability: Capability, request: Request) -> PassedOver | None:
    """Why ``auto`` must not take a backend; None where it may."""
    for kind, ask in (*_CAN_IT, *_MAY_IT):
        if (why := ask(capability, request)) is not None:
            return PassedOver(capability.name, kind, why)
    return None


def _why_elsewhere(capability: Capability, request: Request) -> str | None:
    if request.op not in capability.ops:
        return f"it has no {request.op}"
    if capability.devices is not None and request.device not in capability.devices:
        return f"it runs on {' and '.join(capability.devices)}, not on {request.device}"
    return None


def _why_unable(capability: Capability, request: Request) -> str | None:
    if request.transform and not capability.plain:
        return f"{request.transform} knows PyTorch's own code alone, which is backend='reference'"
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
    for feature in request.features:
        if feature in capability.refuses:
            return capability.refuses[feature]
    if request.needs_grad and not capability.ops[request.op]:
        return "it has no backward pass yet, and a gradient is needed"
    return None


def _why_missing(capability: Capability, request: Request) -> str | None:
    if capability.needs is not None and not _importable(capability.needs):
        return f"the module {capability.needs!r} is not installed"
    if capability.lowered:
        return lowering.why_missing(request.device)
    return None if capability.obstacle is None else capability.obstacle()


def _why_unfit(capability: Capability, request: Request) -> str | None:
    if capability.unfit is None:
        return None
    head_dim = request.head_dim if request.op in ATTENTION else None
    return capability.unfit(request.gpu, head_dim, request.needs_grad)


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


def _why_faulty(capability: Capability, request: Request) -> str | None:
    revoked = proof.REVOKED.get(capability.name)
    if revoked is not None:
        return f"it {revoked}"
    verdict = request.verdict(capability.name)
    return None if verdict is None or verdict[1] else verdict[3]


def _why_unproved(capability: Capability, request: Request) -> str | None:
    """A GPU kernel needs a proof, any other backend only no disproof; proofs are made with the
    reference.
    """
    if not capability.gpu_kernel:
        return None
    verdict = request.verdict(capability.name)
    if verdict is not None:
        return None if verdict[2] is not None else verdict[3]
    if request.unproved:
        return f"{request.unproved}; `{proof.COMMAND}` makes one"
    if covering(request.op, request.features) is None:
        return f"no class of the qualification has {' and '.join(request.features)} together"
    return "no such call in this machine's record; `xlnet-fast qualify --full` may add it"


_CAN_IT = (
    (ELSEWHERE, _why_elsewhere),
    (UNABLE, _why_unable),
    (MISSING, _why_missing),
    (UNABLE, _why_unfit),
)
_MAY_IT = ((FAULT, _why_faulty), (UNPROVED, _why_unproved))


def request_for(
    op: str,
    x: torch.Tensor,
    *,
    head_dim: int = 64,
    needs_grad: bool = False,
    features: Iterable[str] = (),
    rows: Mapping[str, torch.Tensor | None] | None = None,
    backend: str = "auto",
) -> Request:
    """The request of a call.

    Args:
        x: its first operand. features: of the call, in any order.
        rows: operands with a row for each query, key or position, by name, whose layout the CUDA
            kernels must be able to read; looked at where those may be chosen.
        backend: that the call asks for.

    Warns:
        PerformanceWarning: once a process, where ``auto`` is on a GPU without a record.
    """
    request = request_on(
        op, x.device, x.dtype, head_dim=head_dim, needs_grad=needs_grad, features=features,
        proved=backend == "auto",
    )  # fmt: skip
    wanted = backend == "cuda" or request.verdict("cuda") is not None
    if rows is None or not wanted:
        return request
    return replace(request, misaligned=misalignment_of(rows))


def request_on(
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int = 64,
    needs_grad: bool = False,
    features: Iterable[str] = (),
    proved: bool = True,
) -> Request:
    """The request of a call on a device, without its tensors; arguments as :func:`request_for`.

    Args:
        device: one without an index is the current one of its type.
        proved: whether to ask what was proved there, which only ``auto`` needs.
    """
    features = tuple(sorted(features))
    request = Request(op, device.type, dtype, head_dim, needs_grad, gpu_on(device), None, features)
    if transform := transforms.needs_plain_code():
        return replace(request, transform=transform)
    index: int | None = device.index  # whose annotation says int
    if device.type == "cuda" and index is None and torch.cuda.is_available():
        index = torch.cuda.current_device()
    if not proved or device.type not in ("cpu", "cuda"):
        return request
    unproved = proof.why_none(device.type, index)
    if unproved:
        return replace(request, unproved=unproved)
    # Only with a record at hand: a traced graph becomes one of a class of head dims.
    width = head_dim_class(head_dim) if op in ATTENTION else ""
    name = str(dtype).removeprefix("torch.")
    verdicts = proof.verdicts(device.type, index, op, name, width, needs_grad, features)
    return replace(request, proved=verdicts)


def usual_features(op: str, training: bool) -> tuple[str, ...]:
    """The features of an op's calls in a model that is trained or not, for those who explain it."""
    if op == "concat_memory":
        return ("memory",)
    features = {"padding", "segments"}
    if op == "two_stream_attention":
        features |= {"ranks", "positions"}
    return tuple(sorted(features | {"dropout"} if training else features))


def gpu_on(device: torch.device) -> str | None:
    """The compute capability of a CUDA device, as ``Request.gpu`` wants it, else None."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return "{}.{}".format(*torch.cuda.get_device_capability(device))


def misalignment_of(operands: Mapping[str, torch.Tensor | None]) -> str | None:
    """Which operand backend cuda cannot read and why, as ``Request.misaligned`` wants it."""
    for name, x in operands.items():
        reason = None if x is None or x.numel() == 0 else why_misaligned(x)
        if reason is not None:
            return f"{name}: {reason}"
    return None


def spelled(choice: Choice, backend: str) -> str:
    """How a registered op is told its backend: a name, which runs or raises, or two.

    "triton|sdpa" is what ``auto`` chose and what takes over if that raises at its launch.
    """
    if backend == "auto" and choice.backend in GPU_KERNELS:
        return f"{choice.backend}|sdpa"
    return choice.backend


@constant_when_traced  # a traced graph must not look for modules
def _importable(module: str) -> bool:
    return _is_found(module)


@cache
def _is_found(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
