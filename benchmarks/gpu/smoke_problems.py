"""The problems of the smoke stage: each op at a small and a middle size, by any backend.

Each gives a backend's tensors, those of the reference in the same dtype, and those of the reference
in float64, for the one tolerance rule. The Triton kernels that the headline times run are among
those that these problems compile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..cases.rel_attention import DTYPES, FORWARD, FORWARD_BACKWARD, LEAVES, RelAttentionCase
from ..cases.rel_attention import make_inputs as make_attention_inputs

Tensors = list[Tensor]
SIZES = ("small", "middle")
_PASSES = (FORWARD, FORWARD_BACKWARD)
_HALF = ("bf16", "fp16")
# What a CPU computes in a moment, and what a GPU does. With few heads the largest error of a small
# gradient is a matter of luck.
_HEADS = {"cpu": 2, "cuda": 8}
_ROWS = {
    ("cpu", "small"): 48,
    ("cpu", "middle"): 96,
    ("cuda", "small"): 48,
    ("cuda", "middle"): 512,
}
# Of these on a GPU Triton takes the tiles of the headline times.
_SCORES = {
    ("cpu", "small"): 48, ("cpu", "middle"): 160, ("cuda", "small"): 512, ("cuda", "middle"): 1040
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One op, dtype, pass and size; `compute(backend, dtype)` gives its tensors, in order.

    exactly: whether the result must be the reference's own, as of a copy.
    """

    op: str
    dtype: str
    pass_name: str
    size: str
    features: str
    compute: Callable[[str, torch.dtype], Tensors] = field(compare=False, repr=False)
    names: tuple[str, ...] = ()
    exactly: bool = False

    @property
    def label(self) -> str:
        """Its name as a task."""
        return f"{self.op} {self.dtype} {self.pass_name} {self.size} {self.features}"


def problems(device: str) -> list[Problem]:
    """Every problem for a device, "cpu" or "cuda", those first that say most."""
    made: list[Problem] = []
    for size in SIZES:
        for pass_name in _PASSES:
            for dtype in _HALF:
                made += _attention(device, dtype, pass_name, size)
                made.append(_two_streams(device, dtype, pass_name, size))
                made.append(_softmax(device, dtype, pass_name, size))
    made += [_memory(device, dtype, size) for size in SIZES for dtype in _HALF]
    return made


def verdict(problem: Problem, backend: str) -> dict[str, Any]:
    """Compute a problem by a backend and hold every tensor to the rule.

    Returns the outcome, "passed", "failed" or "unavailable", with the error and the bound of the
    tensor nearest to its bound or furthest beyond it. What the backend raises, this raises.
    """
    from xlnet_fast.errors import BackendUnavailable
    from xlnet_fast.tolerance import error_and_bound

    dtype = DTYPES[problem.dtype]
    try:
        actual = problem.compute(backend, dtype)
    except BackendUnavailable as error:
        return {"outcome": "unavailable", "reason": str(error)}
    eager = problem.compute("reference", dtype)
    exact = eager if problem.exactly else problem.compute("reference", torch.float64)
    worst, outside = (0.0, 0.0, ""), []
    for number, (mine, theirs, right) in enumerate(zip(actual, eager, exact, strict=True)):
        name = problem.names[number] if number < len(problem.names) else f"tensor {number}"
        if problem.exactly:
            error, bound = float((mine != theirs).sum()), 0.0
        else:
            error, bound = error_and_bound(mine.detach(), theirs.detach(), right.detach().double())
        if not error <= bound:
            outside.append(name)
        if _ratio(error, bound) >= _ratio(*worst[:2]):
            worst = (error, bound, name)
    answer = {
        "outcome": "failed" if outside else "passed", "error": worst[0], "bound": worst[1],
        "tensor": worst[2], "tensors": len(actual),
    }  # fmt: skip
    return answer | ({"reason": f"outside: {', '.join(outside)}"} if outside else {})


def _ratio(error: float, bound: float) -> float:
    return error / bound if bound > 0 else (math.inf if error > 0 else 0.0)


def attention_cases(device: str, dtype: str, pass_name: str, size: str) -> list[RelAttentionCase]:
    """Cases of `rel_attention`: plain, as a model runs it, with memory, and in training."""
    rows, heads = _ROWS[device, size], _HEADS[device]
    base = RelAttentionCase(
        2, rows, 0, heads, 64, dtype, device, pass_name, padding=False, segments=False
    )
    return [
        base,
        replace(base, padding=True, segments=True),
        replace(base, memory=base.queries // 2, padding=True, segments=True),
        replace(base, padding=True, segments=True, dropout=0.1),
    ]


def _attention(device: str, dtype: str, pass_name: str, size: str) -> list[Problem]:
    from ..providers.rel_attention import named_provider, prepare

    def made(case: RelAttentionCase) -> Problem:
        def compute(backend: str, kind: torch.dtype) -> Tensors:
            prepared = prepare(named_provider(backend), case, make_attention_inputs(case, kind))
            return prepared.standard(prepared.run())

        memory = f"{case.features}{'+memory' if case.memory else ''}"
        names = ("out", *(f"grad of {leaf}" for leaf in LEAVES))
        return Problem("rel_attention", dtype, pass_name, size, memory, compute, names)

    return [made(case) for case in attention_cases(device, dtype, pass_name, size)]


def _two_streams(device: str, dtype: str, pass_name: str, size: str) -> Problem:
    from ..cases import two_stream as two_streams
    from ..providers.two_stream import prepare

    rows, heads = _ROWS[device, size], _HEADS[device]
    case = two_streams.TwoStreamCase(
        2, rows, rows // 6, rows // 4 * 3, heads, dtype, device, pass_name
    )

    def compute(backend: str, kind: torch.dtype) -> Tensors:
        inputs = two_streams.make_inputs(case, kind)
        return prepare(f"ours_{backend}", case, inputs).run()

    names = ("output_h", "output_g", "grad of h", "grad of g")
    features = "memory+segments+ranks+two groups of r"
    return Problem("two_stream_attention", dtype, pass_name, size, features, compute, names)


def _softmax(device: str, dtype: str, pass_name: str, size: str) -> Problem:
    from ..cases.masked_softmax import Scores
    from ..providers.masked_softmax import our_run
    from ..providers.rel_attention import Attention, prepare_attention

    length = _SCORES[device, size]

    def compute(backend: str, kind: torch.dtype) -> Tensors:
        scores = Scores(2, length, 2, kind, torch.device(device))
        leaves = [] if pass_name == FORWARD else scores.leaves()
        attention = Attention(our_run(scores, backend), leaves, scores.grad_out)
        return prepare_attention(attention, pass_name).run()

    names = ("probabilities", "grad of content scores", "grad of position scores")
    return Problem("masked_softmax", dtype, pass_name, size, "padding", compute, names)


def _memory(device: str, dtype: str, size: str) -> Problem:
    rows, width = (7, 36) if size == "small" else (96, 256)

    def compute(backend: str, kind: torch.dtype) -> Tensors:
        from xlnet_fast.ops import concat_memories

        generator = torch.Generator().manual_seed(0)

        def draw() -> Sequence[Tensor]:
            shape = (rows, 2, width)
            return [torch.randn(shape, generator=generator).to(device, kind) for _ in range(3)]

        return concat_memories(draw(), draw(), rows, rows // 2, backend=backend)

    return Problem("concat_memory", dtype, FORWARD, size, "reuse", compute, exactly=True)
