"""A real child whose sdpa backend aborts where keys and values of the memory lie apart."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from xlnet_fast.kernels.sdpa import rel_attention as sdpa_attention
from xlnet_fast.qualifier.child import main

real = sdpa_attention.rel_attention_forward


def forward(keys, streams, outs, stats):
    print("the kernel prints")  # on what was the standard output
    if keys.k_memory is not None:
        os.abort()
    real(keys, streams, outs, stats)


sdpa_attention.rel_attention_forward = forward
main()
