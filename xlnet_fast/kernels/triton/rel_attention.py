"""Relative attention in Triton: the two entries, and what the report compiles.

`rel_attention_forward.py` and `rel_attention_backward.py` hold the kernels, `tile_ops.py` what they
share, `rel_attention_arguments.py` the tuples that they take, `launch.py` the way from `Keys` and
`Queries` to these, `tiles.py` their tiles.
"""

from xlnet_fast.kernels.triton.rel_attention_backward import rel_attention_backward
from xlnet_fast.kernels.triton.rel_attention_compilations import compilations
from xlnet_fast.kernels.triton.rel_attention_forward import rel_attention_forward

__all__ = ["compilations", "rel_attention_backward", "rel_attention_forward"]
