"""The public ops: validation, dispatch, autograd. Each works on its own, without a model."""

import warnings

from torch.jit import TracerWarning  # type: ignore[attr-defined]

from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops.concat_memory import concat_memories, concat_memory
from xlnet_fast.ops.masked_softmax import masked_softmax
from xlnet_fast.ops.rel_attention import rel_attention, two_stream_attention

__all__ = [
    "AttentionMask",
    "concat_memories",
    "concat_memory",
    "masked_softmax",
    "rel_attention",
    "two_stream_attention",
]

# A trace keeps no check of ours: that they compare sizes is no news to whom traces a model. Values
# are not looked at meanwhile (`transforms.can_look`), so nothing else of ours can warn.
warnings.filterwarnings("ignore", category=TracerWarning, module=r"xlnet_fast\.")
