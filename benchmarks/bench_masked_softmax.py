"""Attention probabilities from scores: ours against HF's own lines and compiled HF.

Run it alone: python -m benchmarks.bench_masked_softmax --preset full --out DIR
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .record import Row
from .rel_attention_case import DTYPES, FORWARD
from .runner import Candidate, Tensors, Work, run_case
from .session import Session

KERNEL = "masked_softmax"
SHAPES = ((4, 512), (1, 2048))  # batch, length
_HEADS = 12
_SCALE = 0.125


def steps(session: Session) -> int:
    """Return how many cases `run` will advance by."""
    return len(SHAPES) * len(session.preset.dtypes)


def run(session: Session) -> list[Row]:
    """Run every case and return the rows."""
    rows = []
    for batch, length in SHAPES:
        for dtype in session.preset.dtypes:
            rows += _bench_case(session, batch, length, dtype)
            session.advance()
    return rows


class _Scores:
    """ac (B, N, I, I), bd (B, N, I, 2I), key padding (B, I) and HF's dense mask (I, I, B, 1)."""

    def __init__(self, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(keys: int) -> Tensor:
            values = torch.randn(batch, _HEADS, length, keys, generator=generator) * 4
            return values.bfloat16().to(device, dtype)

        self.content, self.position = draw(length), draw(2 * length)
        self.padding = torch.zeros(batch, length, dtype=torch.bool, device=device)
        self.padding[:, : length // 10] = True
        dense = self.padding.t()[None].expand(length, length, batch)
        own = torch.eye(length, dtype=torch.bool, device=device)[..., None]
        self.hf_mask = (dense & ~own)[..., None].to(dtype)


def _hf(scores: _Scores) -> Callable[[], Tensors]:
    from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

    length = scores.content.shape[3]
    hidden = 65500 if scores.content.dtype == torch.float16 else 1e30

    def run() -> Tensors:
        bd = XLNetRelativeAttention.rel_shift_bnij(scores.position, klen=length)
        total = (scores.content + bd) * _SCALE
        total = total - hidden * torch.einsum("ijbn->bnij", scores.hf_mask)
        return [torch.nn.functional.softmax(total, dim=3)]

    return run


def _ours(scores: _Scores) -> Callable[[], Tensors]:
    from xlnet_fast.masks import AttentionMask
    from xlnet_fast.ops import masked_softmax

    mask = AttentionMask(key_padding=scores.padding, see_self=True)

    def run() -> Tensors:
        out = masked_softmax(
            scores.content, position_scores=scores.position, mask=mask, scale=_SCALE
        )
        return [out]

    return run


def _bench_case(session: Session, batch: int, length: int, dtype: str) -> list[Row]:
    torch._dynamo.reset()
    scores = _Scores(batch, length, DTYPES[dtype], session.device)

    def exact() -> Tensors:
        return _hf(_Scores(batch, length, torch.float64, session.device))()

    def work(run: Callable[[], Tensors]) -> Work:
        return Work(run, run)

    status, reason = session.compile_status()
    candidates = [
        Candidate("hf_eager", lambda: work(_hf(scores))),
        Candidate(
            "hf_compile",
            lambda: work(torch.compile(_hf(scores), dynamic=False)),
            status=status,
            reason=reason,
        ),
        Candidate("ours", lambda: work(_ours(scores))),
    ]
    columns = {
        "kernel": KERNEL,
        "pass_name": FORWARD,
        "dtype": dtype,
        "batch": batch,
        "length": length,
        "memory_length": 0,
        "heads": _HEADS,
        "head_dim": 64,
        "layers": 1,
        "features": "padding",
    }
    label = f"{KERNEL} {batch}x{length} {dtype}"
    return run_case(session.context, label, columns, candidates, exact, ["probabilities"])


if __name__ == "__main__":
    from .run import main

    raise SystemExit(main(only=(KERNEL,)))
