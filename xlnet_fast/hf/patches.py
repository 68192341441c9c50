"""Which methods of HF's classes are still HF's own: a class may be patched at any time.

What `accelerate` puts in the place of a method would hide a patch of it, so every place that does
asks here first, at each call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

from xlnet_fast.transforms import constant_when_traced

_FILE = XLNetRelativeAttention.__init__.__code__.co_filename
"""Of HF's code, as its functions tell it; ``__file__`` may be that of a compiled one."""
_DECORATORS = str(Path(transformers.__file__).parent / "utils")


@constant_when_traced
def patched(base: type, *methods: str) -> str | None:
    """The first of these methods that a class of HF's defines no more, None if it has them all."""
    for name in methods:
        method = _undecorated(getattr(base, name))
        code = getattr(method, "__code__", None)
        own = code is not None and code.co_filename == _FILE
        if not own or method.__qualname__ != f"{base.__qualname__}.{name}":
            return name
    return None


def _undecorated(method: Any) -> Any:
    """The function inside HF's own decorators, such as the one that renames arguments."""
    while hasattr(method, "__wrapped__") and method.__code__.co_filename.startswith(_DECORATORS):
        method = method.__wrapped__
    return method
