"""Ways to ask the service: a file each, with ``router(service, options)``, listed in ``PROTOCOLS``.

A module may have ``FREE_PATHS``: what is answered without a token, such as a health check.
"""

from __future__ import annotations

from types import ModuleType

from xlnet_fast.serve.protocols import health, native

PROTOCOLS: dict[str, ModuleType] = {"health": health, "native": native}
