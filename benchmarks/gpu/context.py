"""Whether a process may still use its GPU."""

from __future__ import annotations

import sys


def is_lost() -> bool:
    """Whether this process's CUDA context is past saving, as after an illegal access.

    Every call then fails, whoever makes it. A process that never used a GPU has nothing to lose,
    and is asked for nothing.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except Exception:
        return True
    return False
