"""A command made of a dataclass: one option per field, so that names and defaults stand once."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from xlnet_fast.cli.config_file import ConfigFile


def command_of(options: type, run: Callable[[Any], None], description: str) -> Callable[..., None]:
    """A function for ``typer`` whose parameters are the fields of a dataclass, and ``--config``.

    Args:
        options: a dataclass; ``metadata["help"]`` of a field is its help. Fields of type
            ``tuple[str, ...]`` are options that may be given several times.
        run: called with an instance.
        description: help of the command.
    """
    hints = typing.get_type_hints(options)

    def command(config: Any = None, **values: Any) -> None:
        given = {
            name: tuple(value or ()) if _repeats(hints[name]) else value
            for name, value in values.items()
        }
        run(options(**given))

    parameters = [_parameter("config", ConfigFile, None)]
    for field in dataclasses.fields(options):
        hint, default = hints[field.name], field.default
        required = default is dataclasses.MISSING
        if _repeats(hint):
            hint, default = list[str] | None, None
        option = typer.Option(
            *([f"--{field.name.replace('_', '-')}"] if hint is not bool else []),
            help=field.metadata["help"],
            show_default=default is not None,
            metavar="DIR" if hint is Path else None,
        )
        parameters.append(
            _parameter(
                field.name,
                Annotated[hint, option],
                inspect.Parameter.empty if required else default,
            )
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = description
    return command


def _repeats(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
