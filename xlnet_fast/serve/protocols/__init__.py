"""Ways to ask the service: a file each, with ``router(service, options)``, listed in ``PROTOCOLS``.

A module may have ``FREE_PATHS``: what is answered without a token, such as a health check.
"""

from __future__ import annotations

from types import ModuleType

from xlnet_fast.serve.protocols import (
    health,
    native,
    open_inference,
    openai,
    page,
    sagemaker,
)

PROTOCOLS: dict[str, ModuleType] = {
    "health": health,
    "native": native,
    "open_inference": open_inference,
    "openai": openai,
    "sagemaker": sagemaker,
    "page": page,
}
