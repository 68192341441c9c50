"""``--config FILE``: the options of a command from a YAML file; flags on the command line win."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.options import COMMON


def _set_defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Make what the file says the defaults of the command's options.

    Raises:
        ArgumentError: the file cannot be read, is no YAML mapping or names an unknown option.
    """
    if path is None:
        return None
    known = {
        parameter.name: parameter
        for parameter in context.command.params
        if parameter.name not in (None, "config", "help")
    }
    defaults: dict[str, Any] = {}
    for key, value in _read(path).items():
        name = str(key).replace("-", "_")
        name = f"{name}_" if f"{name}_" in known else name  # a word that Python keeps for itself
        if name not in known:
            options = ", ".join(sorted(known, key=str))
            raise ArgumentError(f"{path} sets {key}, which is no option; they are: {options}")
        if isinstance(value, list) != bool(getattr(known[name], "multiple", False)):
            wanted = "a single value" if isinstance(value, list) else "a list"
            raise ArgumentError(f"{path} sets {key} to {value!r}, expected {wanted}")
        if value is None or isinstance(value, Mapping):
            raise ArgumentError(f"{path} sets {key} to {value!r}, expected a value")
        # Values go the way of the command line, so they are checked and converted as flags are.
        defaults[name] = value if isinstance(value, (bool, list)) else str(value)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _read(path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"the config file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"the config file {path} is no valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ArgumentError(f"the config file {path} must hold 'option: value' lines")
    return content


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=_set_defaults,
        show_default=False,
        rich_help_panel=COMMON,
        help="YAML file of 'option: value' lines; flags win",
    ),
]
"""The ``--config`` option; a command takes it as ``config: ConfigFile = None``."""
