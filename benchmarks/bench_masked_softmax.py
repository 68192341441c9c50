"""Attention probabilities from scores: ours against HF's own lines and compiled HF.

Run it alone: python -m benchmarks.bench_masked_softmax --preset full --out DIR
Bandwidth counts what must be moved. Forward: the content scores and as many position scores read,
the probabilities written. Backward: probabilities and their gradient read, the gradient of the
content scores and the whole table of position gradients, zeros included, written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .record import Row
from .rel_attention_case import BACKWARD, DTYPES, FORWARD, PASSES
from .rel_attention_providers import Attention, Prepared, prepare_attention
from .runner import Candidate, Tensors, Work, run_case
from .session import Session

KERNEL = "masked_softmax"
SHAPES = ((4, 512, 12), (1, 2048, 12))  # batch, length, heads
LARGE_SHAPES = ((32, 512, 16), (1, 4096, 16))
PROVIDERS = (
    "hf_eager", "ours", "ours_cpu", "ours_cuda", "ours_triton", "ours_sdpa", "hf_compile",
)  # fmt: skip
_SCALE = 0.125
_LEAVES = ("content scores", "position scores")


def cases(session: Session) -> list[tuple[int, int, int, str, str]]:
    """Return (batch, length, heads, dtype, pass) of every case."""
    shapes = LARGE_SHAPES if session.preset.large_ops else SHAPES
    return [(*s, d, p) for d in session.preset.dtypes for s in shapes for p in PASSES]


def steps(session: Session) -> int:
    """Return how many cases `run` will advance by."""
    return len(cases(session))


def run(session: Session) -> list[Row]:
    """Run every case and return the rows."""
    rows = []
    for case in cases(session):
        rows += _bench_case(session, *case)
        session.advance()
    return rows


class Scores:
    """ac (B, N, I, I), bd (B, N, I, 2I), key padding (B, I) and HF's dense mask (I, I, B, 1)."""

    def __init__(
        self, batch: int, length: int, heads: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        generator = torch.Generator(device).manual_seed(0)  # the host would take seconds

        def draw(keys: int) -> Tensor:
            values = torch.randn(batch, heads, length, keys, generator=generator, device=device)
            return (values * 4).bfloat16().to(dtype)

        self.content, self.position = draw(length), draw(2 * length)
        self.grad_out = draw(length)
        self.padding = torch.zeros(batch, length, dtype=torch.bool, device=device)
        self.padding[:, : length // 10] = True
        dense = self.padding.t()[None].expand(length, length, batch)
        own = torch.eye(length, dtype=torch.bool, device=device)[..., None]
        self.hf_mask = (dense & ~own)[..., None].to(dtype)

    def leaves(self) -> list[Tensor]:
        """Return what the backward differentiates by."""
        return [x.requires_grad_() for x in (self.content, self.position)]


def hf_run(scores: Scores) -> Callable[[], Tensor]:
    """Return HF's lines of `rel_attn_core` from the scores to the probabilities."""
    from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

    length = scores.content.shape[3]
    hidden = 65500 if scores.content.dtype == torch.float16 else 1e30

    def run() -> Tensor:
        bd = XLNetRelativeAttention.rel_shift_bnij(scores.position, klen=length)
        total = (scores.content + bd) * _SCALE
        total = total - hidden * torch.einsum("ijbn->bnij", scores.hf_mask)
        return torch.nn.functional.softmax(total, dim=3)

    return run


def our_run(scores: Scores, backend: str = "auto") -> Callable[[], Tensor]:
    """Return our op on the same scores."""
    from xlnet_fast.masks import AttentionMask
    from xlnet_fast.ops import masked_softmax

    mask = AttentionMask(key_padding=scores.padding, see_self=True)

    def run() -> Tensor:
        return masked_softmax(
            scores.content,
            position_scores=scores.position,
            mask=mask,
            scale=_SCALE,
            backend=backend,
        )

    return run


def _prepare(provider: str, scores: Scores, pass_name: str) -> Prepared:
    if provider == "hf_eager":
        run = hf_run(scores)
    elif provider == "hf_compile":
        run = torch.compile(hf_run(scores), dynamic=False)
    else:
        run = our_run(scores, provider.removeprefix("ours").removeprefix("_") or "auto")
    leaves = [] if pass_name == FORWARD else scores.leaves()
    attention = Attention(run, leaves, scores.grad_out)
    return prepare_attention(attention, pass_name, compiles=provider == "hf_compile")


def _bench_case(
    session: Session, batch: int, length: int, heads: int, dtype: str, pass_name: str
) -> list[Row]:
    torch._dynamo.reset()
    scores = Scores(batch, length, heads, DTYPES[dtype], session.device)

    def exact() -> Tensors:
        # Element by element: a dozen float64 copies of all scores would not fit a small GPU.
        parts = [
            _prepare("hf_eager", _double_element(scores, i), pass_name).run() for i in range(batch)
        ]
        return [torch.cat(each).detach() for each in zip(*parts, strict=True)]

    columns = {
        "kernel": KERNEL,
        "pass_name": pass_name,
        "dtype": dtype,
        "batch": batch,
        "length": length,
        "memory_length": 0,
        "heads": heads,
        "head_dim": 64,
        "layers": 1,
        "features": "padding",
    }
    elements = batch * heads * length * length
    # Of score-sized tensors; the position table is two of them.
    tensors = {FORWARD: 3, BACKWARD: 5}.get(pass_name, 8)
    moved = float(tensors * elements * DTYPES[dtype].itemsize)
    candidates = [_candidate(session, name, scores, pass_name, moved) for name in PROVIDERS]
    names = ["probabilities"]
    if pass_name != FORWARD:
        names += [f"grad of {name}" for name in _LEAVES]
    label = f"{KERNEL} {batch}x{length} {dtype} {pass_name}"
    return run_case(session.context, label, columns, candidates, exact, names)


def _double_element(scores: Scores, element: int) -> Scores:
    """Return the scores of one batch element in float64."""
    part = object.__new__(Scores)
    own = slice(element, element + 1)
    for name in ("content", "position", "grad_out"):
        setattr(part, name, getattr(scores, name).detach()[own].double())
    part.padding = scores.padding[own]
    part.hf_mask = scores.hf_mask[:, :, own].double()
    return part


def _candidate(
    session: Session, name: str, scores: Scores, pass_name: str, moved: float
) -> Candidate:
    status = reason = ""
    if name == "hf_compile":
        status, reason = session.compile_status()
    held: list[Callable[[], Any]] = []

    def build() -> Work:
        prepared = _prepare(name, scores, pass_name)
        held.append(prepared.run)
        if name != "hf_compile":
            return Work(prepared.run, prepared.run)

        def result() -> Tensors:
            with session.counted_as_compiling():
                return prepared.run()

        return Work(prepared.run, result)

    memory = None
    if session.device.type == "cuda":
        memory = session.memory_probe(KERNEL, {}, lambda: held[0])
    return Candidate(name, build, True, status, reason, bytes_moved=moved, memory_mib=memory)


if __name__ == "__main__":
    from .run import main

    raise SystemExit(main(only=(KERNEL,)))
