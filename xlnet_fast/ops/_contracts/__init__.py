"""torch.library contracts: schemas, real and fake implementations, autograd; a file per op."""

from xlnet_fast.ops._contracts import (
    concat_memory,
    flops,
    keep_mask,
    masked_softmax,
    rel_attention,
)

__all__ = ["concat_memory", "flops", "keep_mask", "masked_softmax", "rel_attention"]
