"""A command made of a dataclass: one option per field, so that names and defaults stand once."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from xlnet_fast.cli.config_file import ConfigFile
from xlnet_fast.train.shared.options import GROUPS, is_switch

_METAVARS = {int: "N", float: "X", str: "NAME", Path: "DIR"}


class GroupedCommand(TyperCommand):
    """A command of many options, whose ``--help`` has room for their names."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As the base class, with the options as :func:`_listed` and without ``--help``."""
        params = self.params
        self.params, self.add_help_option = [_listed(option) for option in params], False
        try:
            super().format_help(ctx, formatter)
        finally:
            self.params, self.add_help_option = params, True


def _listed(option: Any) -> Any:
    """An option whose help says that it is required, and that has one name if it is a switch.

    That which changes something: a command line understands ``--name`` and ``--no-name``, so that
    either wins over a config file. Where neither is the default, both.
    """
    listed = copy.copy(option)
    listed.required = False
    if option.secondary_opts:
        listed.opts = option.secondary_opts if option.default else option.opts
        if option.default is None:
            listed.opts = [f"--[no-]{option.opts[0].removeprefix('--')}"]
        listed.secondary_opts = []
    return listed


def command_of(
    options: type,
    run: Callable[[Any], None],
    description: str,
    groups: Sequence[str] = GROUPS,
) -> Callable[..., None]:
    """A function for ``typer`` whose parameters are the fields of a dataclass, and ``--config``.

    Args:
        options: a dataclass of fields that ``option`` made. Fields of type ``tuple[str, ...]`` are
            options that may be given several times.
        run: called with an instance.
        description: help of the command.
        groups: the panels of its ``--help``, in order.
    """
    hints = typing.get_type_hints(options)

    def command(config: Any = None, **values: Any) -> None:
        given = {
            name: tuple(value or ()) if _repeats(hints[name]) else value
            for name, value in values.items()
        }
        run(options(**given))

    parameters = [_parameter(field, hints[field.name]) for field in _in_order(options, groups)]
    parameters.append(_keyword("config", ConfigFile, None))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = description
    return command


def _in_order(options: type, groups: Sequence[str]) -> list[dataclasses.Field[Any]]:
    """The fields group by group; in each, those of the class before what it inherits."""
    own = options.__annotations__
    return sorted(
        dataclasses.fields(options),
        key=lambda field: (groups.index(field.metadata["group"]), field.name not in own),
    )


def _parameter(field: Any, hint: Any) -> inspect.Parameter:
    """The option of a field."""
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    if _repeats(hint):
        hint, default = list[str] | None, None
    kinds = (hint, *typing.get_args(hint))
    kind = next((one for one in _METAVARS if one in kinds), str)
    switch = is_switch(hint)
    shown: dict[str, Any] = {
        "help": _help(field),
        "rich_help_panel": field.metadata["group"],
        "show_default": False,
        "metavar": field.metadata["metavar"] or ("" if switch else _METAVARS[kind]),
    }
    words = field.name.rstrip("_").replace("_", "-")  # `from_`, which Python keeps for itself
    names = [f"--{words}/--no-{words}" if switch else f"--{words}"]
    option = typer.Option(*names, **shown)
    if field.metadata["argument"]:
        option = typer.Argument(**{**shown, "rich_help_panel": None})  # a panel of its own
    return _keyword(field.name, Annotated[hint, option], default)


def _help(field: Any) -> str:
    """The phrase and, in parentheses, the default; switches and what is off have none to tell."""
    shown = "required" if field.default is dataclasses.MISSING else field.metadata["shown"]
    if not shown and not isinstance(field.default, (bool, tuple)) and field.default is not None:
        shown = str(field.default)
    phrase: str = field.metadata["help"]
    return f"{phrase} ({shown})" if shown else phrase


def _repeats(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
