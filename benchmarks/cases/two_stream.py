"""One attention layer of a pretraining step: both streams, memory, permutation, data of two halves.

The sizes are the paper's: 512 tokens of which 85 are predicted, 384 tokens of memory, and a batch
whose second half runs backwards (`bi_data`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .rel_attention import BACKWARD, DTYPES, FORWARD, PASSES

# Names of what carries gradients: the two streams, then the layer's parameters.
STREAMS = ("h", "g")


@dataclass(frozen=True)
class TwoStreamCase:
    """B batch, I tokens, I' targets, M memory, N heads of 64; dropout 0, as everyone draws his own.

    pass_name: forward, backward (of a forward done before) or forward_backward.
    """

    batch: int
    length: int = 512
    targets: int = 85
    memory: int = 384
    heads: int = 12
    dtype: str = "fp32"
    device: str = "cpu"
    pass_name: str = FORWARD

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.pass_name not in PASSES:
            raise ValueError(f"pass must be one of {', '.join(PASSES)}, got {self.pass_name!r}")
        if self.batch % 2:
            raise ValueError(f"bi_data needs an even batch, got {self.batch}")

    @property
    def width(self) -> int:
        """H, the width of hidden states."""
        return 64 * self.heads

    def flops(self) -> float:
        """Return the necessary operations of the layer.

        Projections: q, o of both streams, k, v of all J keys, r once per direction. Attention 6T
        with T = B N (I + I') J D. A backward has 2 times the projections and 16T.
        """
        b, i, j, h = self.batch, self.length, self.memory + self.length, self.width
        rows = i + self.targets
        linear = 2 * h * h * (2 * b * rows + 2 * b * j + 2 * (i + j))
        t = b * rows * j * h
        factors = {FORWARD: (1, 6), BACKWARD: (2, 16)}.get(self.pass_name, (3, 22))
        return float(factors[0] * linear + factors[1] * t)


@dataclass
class TwoStreamInputs:
    """What one layer gets, in HF's layout.

    h (I, B, H), g (I', B, H), memory (M, B, H), table (P, 2, H), parameters by HF's names,
    positions (B, I') sorted, rank_q (B, I) and rank_k (B, J), segments (B, J).
    """

    h: Tensor
    g: Tensor
    memory: Tensor
    table: Tensor
    parameters: dict[str, Tensor]
    grads: tuple[Tensor, Tensor]
    positions: Tensor
    rank_q: Tensor
    rank_k: Tensor
    segments: Tensor

    def leaves(self) -> list[Tensor]:
        """Return what carries gradients; the memory is detached, as HF's."""
        return [self.h, self.g, *self.parameters.values()]


def leaf_names(inputs: TwoStreamInputs) -> list[str]:
    """Return the names of the leaves, in order."""
    return [*STREAMS, *inputs.parameters]


def make_inputs(case: TwoStreamCase, dtype: torch.dtype | None = None) -> TwoStreamInputs:
    """Draw the inputs: the same numbers in every dtype, rounded to bf16 first."""
    from xlnet_fast.nn.positions import relative_positions

    dtype = dtype or DTYPES[case.dtype]
    device = torch.device(case.device)
    generator = torch.Generator().manual_seed(case.batch * 101 + case.length)
    i, j, width = case.length, case.memory + case.length, case.width

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator) * scale
        return values.bfloat16().to(device=device, dtype=dtype)

    weights = {n: draw(width, case.heads, 64, scale=width**-0.5) for n in ("q", "k", "v", "o", "r")}
    biases = ("r_r_bias", "r_s_bias", "r_w_bias")
    weights |= {name: draw(case.heads, 64, scale=0.3) for name in biases}
    weights["seg_embed"] = draw(2, case.heads, 64, scale=0.3)
    table = relative_positions(i, j, width, bi_data=True).bfloat16()
    # A token sees those that come before it in the permutation; targets are the last ones of it.
    order = torch.stack([torch.randperm(i, generator=generator) for _ in range(case.batch)])
    targets = order >= i - case.targets
    # Context and memory are seen by all, and see each other: the lowest rank.
    rank_k = torch.where(targets, order, -1)
    rank_q = torch.where(targets, order, 0)
    memory_rank = torch.full((case.batch, case.memory), -1)
    segments = torch.zeros(case.batch, j, dtype=torch.int64)
    segments[:, case.memory + i // 2 :] = 1
    inputs = TwoStreamInputs(
        h=draw(i, case.batch, width), g=draw(case.targets, case.batch, width),
        memory=draw(case.memory, case.batch, width), table=table.to(device=device, dtype=dtype),
        parameters=weights,
        grads=(draw(i, case.batch, width), draw(case.targets, case.batch, width)),
        positions=targets.nonzero()[:, 1].view(case.batch, case.targets).to(device),
        rank_q=rank_q.to(device), rank_k=torch.cat([memory_rank, rank_k], 1).to(device),
        segments=segments.to(device),
    )  # fmt: skip
    if case.pass_name != FORWARD:
        for leaf in inputs.leaves():
            leaf.requires_grad_()
    return inputs
