"""`xlnet-fast` in this process, and what it says when it refuses its input."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from xlnet_fast import cli


def run(*arguments: str | Path):
    """A command line that is done."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def refused(result) -> str:
    """The sentence of a command that refused its input."""
    assert result.exit_code == cli.BAD_INPUT, result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
