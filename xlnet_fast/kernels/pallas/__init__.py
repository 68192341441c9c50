"""Pallas kernels for TPUs, forward and backward: JAX functions of JAX arrays.

Nothing else in the package imports this, and only this imports JAX (extra ``tpu``). The public
functions are in ``rel_attention.py``; ``layout.py`` makes of their arguments the kernels' operands
(``operands.py``); ``forward.py``, ``backward_q.py`` and ``backward_kv.py`` are a kernel each, over
``tile_ops.py``.
"""

from xlnet_fast.kernels.pallas.rel_attention import rel_attention, two_stream_attention

__all__ = ["rel_attention", "two_stream_attention"]
