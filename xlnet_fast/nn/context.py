"""What every layer of one forward pass shares, prepared once before the first layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops.settled import Settled


@dataclass(frozen=True)
class AttentionContext:
    """Masks, segments and targets of one forward pass; it travels where HF passes its dense mask.

    Letters: B batch, I current tokens, M memory, J = M + I, I' predicted positions.

    Attributes:
        mask: hidden keys of the I current positions; both streams read it.
        segments: (B, J) int64 segment ids, 0 for memory, or None.
        positions: (B, I') position of each query-stream row, negative for absent rows, or None.
        target_mapping: (I', I, B) dense mapping, where it is not one-hot or probabilities are
            wanted: the query stream then runs over all I positions. At most one of ``positions``
            and ``target_mapping`` is given.
        head_mask: (N,) what each head's probabilities are multiplied with, or None.
        backend: "auto" or the name of the attention's backend; ops that this backend does not
            have (probabilities, memory) run on "auto".
        settled: keeps what the layers need not check again; None where each checks.
    """

    mask: AttentionMask = field(default_factory=AttentionMask)
    segments: Tensor | None = None
    positions: Tensor | None = None
    target_mapping: Tensor | None = None
    head_mask: Tensor | None = None
    backend: str = "auto"
    settled: Settled | None = None
