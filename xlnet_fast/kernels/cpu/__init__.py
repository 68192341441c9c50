"""Backend ``cpu``: C++ kernels for the instruction sets of this CPU, in the compiled extension."""

from __future__ import annotations

from xlnet_fast import _extension
from xlnet_fast.transforms import constant_when_traced


@constant_when_traced  # a traced graph must not import a module
def why_unavailable() -> str | None:
    """Why this backend cannot run here, with the remedy; None where it can."""
    reason = _extension.why_missing()
    if reason is not None:
        return reason
    if not _extension.require().attention_isa_available():
        return (
            "the extension was built by a compiler without vector extensions (gcc, clang have it)"
        )
    return None
