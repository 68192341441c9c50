"""Pallas kernels for TPUs, forward and backward: JAX functions of JAX arrays.

JAX is of the extra ``tpu``, so this is imported by ``xlnet_fast.tpu``, the report on kernels and
the export for XLA alone, when they are called. The public functions are in ``rel_attention.py``,
the registered ops over them in ``registered.py``; ``layout.py`` makes of their arguments the
kernels' operands (``operands.py``); ``forward.py``, ``backward_q.py`` and ``backward_kv.py`` are a
kernel each, over ``tile_ops.py``.
"""

from xlnet_fast.kernels.pallas.rel_attention import rel_attention, two_stream_attention

__all__ = ["rel_attention", "two_stream_attention"]
