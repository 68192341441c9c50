"""The files by which SageMaker describes a training job, as the variables of its toolkit.

SageMaker's toolkit makes variables of them, and where it does not run, this does: in any image
with this package, started by a container entry point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError


def completed(environment: Mapping[str, str], base: Path) -> dict[str, str]:
    """The variables, those that are missing made of the files; unchanged where there are no files.

    Args:
        base: where SageMaker mounts everything.

    Raises:
        ArgumentError: a file is no JSON object.
    """
    config = Path(environment.get("SM_INPUT_CONFIG_DIR", base / "input" / "config"))
    found: dict[str, str] = {}
    resources = _read(config / "resourceconfig.json")
    if resources is not None:
        found["SM_HOSTS"] = json.dumps(resources.get("hosts", []))
        found["SM_CURRENT_HOST"] = str(resources.get("current_host", ""))
        found["SM_NUM_GPUS"] = str(_gpus())
        found["SM_OUTPUT_DIR"] = str(base / "output")
        found["SM_OUTPUT_DATA_DIR"] = str(base / "output" / "data")
    # The toolkit names every channel: where there is one variable, there are all.
    if not any(name.startswith("SM_CHANNEL_") for name in environment):
        for channel in _read(config / "inputdataconfig.json") or {}:
            variable = f"SM_CHANNEL_{channel.upper().replace('-', '_')}"
            found[variable] = str(base / "input" / "data" / channel)
    return {**found, **environment}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ArgumentError(f"{path} holds no JSON object")
    return content


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
