"""``python -m xlnet_fast.cli.sagemaker_serving serve``: a SageMaker endpoint's container.

SageMaker starts an image with the argument ``serve``, mounts the model, and asks at a port of its
own. This starts what ``xlnet-fast serve`` starts, told by environment variables: docs/serve.md.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlnet_fast.cli import BAD_INPUT
from xlnet_fast.cli.sagemaker_contract import BASE
from xlnet_fast.cli.serve import run_serve
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.serve.options import ServeOptions

PREFIX = "XLNET_FAST_SERVE_"
PORT = "8080"
BODY_BYTES = 6 << 20  # what SageMaker sends in one request
_LEVELS = {"10": "debug", "20": "info", "30": "warning", "40": "error", "50": "error"}
_WANTED = {bool: "true or false", int: "a whole number", float: "a number"}
_SWITCH = {"true": True, "1": True, "false": False, "0": False}


def main() -> None:
    """Serve until SageMaker ends it, and exit with its code."""
    sys.exit(run(sys.argv[1:], os.environ))


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Serve what the environment describes. Returns the exit code, 2 where it cannot be served."""
    try:
        if list(arguments) not in ([], ["serve"]):
            raise ArgumentError(
                f"the arguments are {' '.join(arguments)!r}, expected serve: a training job is "
                "python -m xlnet_fast.cli.sagemaker"
            )
        run_serve(options_of(environment))
    except XLNetFastError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return 0


def options_of(environment: Mapping[str, str]) -> ServeOptions:
    """What SageMaker's variables say, and those with ``PREFIX``, which win.

    Raises:
        ArgumentError: a variable names no option, or has a value that is none for it.
    """
    several = environment.get("SAGEMAKER_MULTI_MODEL", "false").lower()
    if several not in _SWITCH:
        raise ArgumentError(f"SAGEMAKER_MULTI_MODEL is {several!r}, expected true or false")
    values: dict[str, Any] = {
        "host": "0.0.0.0",
        "port": _value("SAGEMAKER_BIND_TO_PORT", int, environment, PORT),
        "body_bytes": BODY_BYTES,
    }
    level = environment.get("SAGEMAKER_CONTAINER_LOG_LEVEL")
    if level is not None:
        values["log_level"] = _LEVELS.get(level, level.lower())
    if "SAGEMAKER_MODEL_SERVER_TIMEOUT" in environment:
        values["timeout"] = _value("SAGEMAKER_MODEL_SERVER_TIMEOUT", float, environment)
    if _SWITCH[several]:
        # Requests load them: what lies in their folder is served when SageMaker says so, no sooner.
        values["load_from"] = _folder_of_models(environment)
        values["models"] = tempfile.mkdtemp(prefix="xlnet-fast-none-")
        values["poll"] = 0.0
    else:
        values["models"] = environment.get("SM_MODEL_DIR", str(BASE / "model"))
    return ServeOptions(**{**values, **_given(environment)})


def _folder_of_models(environment: Mapping[str, str]) -> Path:
    """Where SageMaker puts models; made, for at first there is none."""
    folder = Path(environment.get(f"{PREFIX}LOAD_FROM", BASE / "models"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{folder} is no folder for models: {error.strerror}") from error
    return folder


def _given(environment: Mapping[str, str]) -> dict[str, Any]:
    """The options that variables with ``PREFIX`` name."""
    hints = typing.get_type_hints(ServeOptions)
    known = {field.name for field in dataclasses.fields(ServeOptions)}
    values = {}
    for variable in sorted(environment):
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in known:
            raise ArgumentError(
                f"{variable} names no option of xlnet-fast serve; there are: "
                f"{', '.join(sorted(known))}"
            )
        kinds = [kind for kind in (bool, int, float, Path, str) if kind in _kinds(hints[name])]
        values[name] = _value(variable, kinds[0], environment)
    return values


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) or (hint,)


def _value(variable: str, kind: Any, environment: Mapping[str, str], default: str = "") -> Any:
    """A variable as a type."""
    text = environment.get(variable, default)
    try:
        return _SWITCH[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise ArgumentError(f"{variable} is {text!r}, expected {_WANTED[kind]}") from error


if __name__ == "__main__":
    main()
