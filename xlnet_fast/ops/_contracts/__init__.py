"""torch.library contracts: schemas, real and fake implementations, autograd; a file per op."""

from importlib import import_module

from xlnet_fast.deferred import when_imported
from xlnet_fast.ops._contracts import concat_memory, keep_mask, masked_softmax, rel_attention

__all__ = ["concat_memory", "keep_mask", "masked_softmax", "rel_attention"]

# PyTorch's counter of operations imports Triton, which takes longer than all of ours.
when_imported("torch.utils.flop_counter", lambda: import_module("xlnet_fast.ops._contracts.flops"))
