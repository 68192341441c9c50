"""One case of the relative attention benchmark: its sizes, its inputs, its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORWARD = "forward"
BACKWARD = "backward"
FORWARD_BACKWARD = "forward_backward"
PASSES = (FORWARD, BACKWARD, FORWARD_BACKWARD)
# Names of the tensors that carry gradients, in the order in which every provider returns them.
LEAVES = ("q", "k", "v", "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")


@dataclass(frozen=True)
class RelAttentionCase:
    """Sizes in the letters of the maths: B batch, I queries, M memory keys, N heads, D head dim.

    pass_name: forward, backward (of a forward done before) or forward_backward.
    padding, segments: whether keys are padded, and whether tokens have segments.
    dropout: of the probabilities.
    """

    batch: int
    queries: int
    memory: int = 0
    heads: int = 12
    head_dim: int = 64
    dtype: str = "fp32"
    device: str = "cpu"
    pass_name: str = FORWARD
    padding: bool = True
    segments: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.pass_name not in PASSES:
            raise ValueError(f"pass must be one of {', '.join(PASSES)}, got {self.pass_name!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def keys(self) -> int:
        """J = M + I."""
        return self.memory + self.queries

    @property
    def features(self) -> str:
        """What the CSV column `features` says."""
        names = ["padding"] * self.padding + ["segments"] * self.segments
        if self.dropout:
            names.append(f"dropout {self.dropout:g}")
        return "+".join(names) or "plain"

    @property
    def backward(self) -> bool:
        """Whether the pass gives gradients."""
        return self.pass_name != FORWARD

    @property
    def label(self) -> str:
        """A short name for tables and progress bars."""
        memory = f"+{self.memory}" if self.memory else ""
        return f"{self.batch}x{self.queries}{memory} {self.dtype} {self.features} {self.pass_name}"

    def flops(self, *, content_only: bool = False) -> float:
        """Return the necessary floating point operations.

        With T = B N I J D: relative attention 6T forward (ac, bd, pv) and 16T backward,
        content-only attention 4T and 10T.
        """
        t = self.batch * self.heads * self.queries * self.keys * self.head_dim
        forward, backward = (4, 10) if content_only else (6, 16)
        factor = {FORWARD: forward, BACKWARD: backward, FORWARD_BACKWARD: forward + backward}
        return float(t * factor[self.pass_name])


@dataclass
class RelAttentionInputs:
    """Tensors of one case, in the package's layout; `hf_*` are what HF builds once per forward.

    q (B, I, N, D), k and v (B, J, N, D), r (1, P, N, D) with P = I + J, biases (N, D),
    seg_embed (2, N, D), segments_q (B, I) and segments_k (B, J) int64, key_padding (B, J) bool.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    r: Tensor
    r_w_bias: Tensor
    r_r_bias: Tensor
    r_s_bias: Tensor
    seg_embed: Tensor
    grad_out: Tensor
    segments_q: Tensor | None
    segments_k: Tensor | None
    key_padding: Tensor | None
    scale: float
    hf_mask: Tensor | None = field(default=None)
    hf_segments: Tensor | None = field(default=None)

    def leaves(self) -> list[Tensor]:
        """Return the tensors that carry gradients; segment parts only when segments are used."""
        names = LEAVES if self.segments_q is not None else LEAVES[:6]
        return [getattr(self, name) for name in names]


def make_inputs(case: RelAttentionCase, dtype: torch.dtype | None = None) -> RelAttentionInputs:
    """Draw the inputs of a case: the same numbers in every dtype and on every device.

    They are rounded to bf16 first, so that bf16, fp32 and float64 runs share one exact result.
    dtype: the dtype of the tensors; the case's own by default.
    """
    device = torch.device(case.device)
    dtype = dtype or DTYPES[case.dtype]
    generator = torch.Generator().manual_seed(
        case.batch * 1_000_003 + case.queries * 101 + case.memory
    )
    b, i, j, n, d = case.batch, case.queries, case.keys, case.heads, case.head_dim

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator) * scale
        return values.bfloat16().to(device=device, dtype=dtype)

    inputs = RelAttentionInputs(
        q=draw(b, i, n, d), k=draw(b, j, n, d), v=draw(b, j, n, d), r=draw(1, i + j, n, d),
        r_w_bias=draw(n, d, scale=0.3), r_r_bias=draw(n, d, scale=0.3),
        r_s_bias=draw(n, d, scale=0.3), seg_embed=draw(2, n, d, scale=0.3),
        grad_out=draw(b, i, n, d), segments_q=None, segments_k=None, key_padding=None,
        scale=d**-0.5,
    )  # fmt: skip
    if case.padding or case.segments:
        _add_masks(case, inputs)
    if case.backward:
        for leaf in inputs.leaves():
            leaf.requires_grad_()
    return inputs


def _add_masks(case: RelAttentionCase, inputs: RelAttentionInputs) -> None:
    """Left padding of 5 to 20% of the current segment, two segments; memory has segment 0."""
    b, i, m, j = case.batch, case.queries, case.memory, case.keys
    device, dtype = inputs.q.device, inputs.q.dtype
    padding = torch.zeros(b, j, dtype=torch.bool)
    segments = torch.zeros(b, i, dtype=torch.int64)
    for row in range(b):
        # Rows differ, and a batch of one is padded too.
        hidden = (i * (row % 4 + 1)) // 20
        padding[row, m : m + hidden] = True
        segments[row, hidden + (i - hidden) // 2 :] = 1
    if case.padding:
        inputs.key_padding = padding.to(device)
        own = torch.zeros(i, j, dtype=torch.bool, device=device)
        own[torch.arange(i), m + torch.arange(i)] = True
        hidden_from = inputs.key_padding.t()[None].expand(i, j, b) & ~own[:, :, None]
        inputs.hf_mask = hidden_from[..., None].to(dtype)
    if case.segments:
        inputs.segments_q = segments.to(device)
        memory = torch.zeros(b, m, dtype=torch.int64)
        inputs.segments_k = torch.cat([memory, segments], dim=1).to(device)
        differs = inputs.segments_q.t()[:, None] != inputs.segments_k.t()[None]  # (I, J, B)
        inputs.hf_segments = torch.nn.functional.one_hot(differs.long(), 2).to(dtype)
