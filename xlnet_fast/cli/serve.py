"""``xlnet-fast serve``."""

from __future__ import annotations

import importlib.util
from functools import partial

from xlnet_fast.cli.options import command_of
from xlnet_fast.errors import ArgumentError
from xlnet_fast.serve.options import GROUPS, ServeOptions

_NEEDED = ("fastapi", "prometheus_client", "uvicorn")


def run_serve(options: ServeOptions) -> None:
    """Say on standard output when and where models are served; logs go to standard error."""
    options.check()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = [name.replace("_", "-") for name in missing]
        raise ArgumentError(
            f"serving needs {', '.join(names)}, not installed here: pip install {' '.join(names)}"
        )
    from xlnet_fast.serve.lifecycle import run

    run(options, partial(print, flush=True))


serve_command = command_of(
    ServeOptions,
    run_serve,
    "Serve trained XLNets over HTTP: batches by length, versions in folders, the usual protocols.",
    GROUPS,
)
