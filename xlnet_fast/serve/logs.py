"""Log lines: JSON for machines, plain ones on a terminal; never a request's text."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from types import TracebackType
from typing import TextIO

LOGGER = "xlnet_fast.serve"
_OTHERS = ("uvicorn.error", "py.warnings")
_STANDARD = {*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "asctime"}


class JsonLines(logging.Formatter):
    """An object a line: ``time``, ``level``, ``message``, and what else was said."""

    def format(self, record: logging.LogRecord) -> str:
        """See the base class."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **said(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class PlainLines(logging.Formatter):
    """A line to read: time, level, message, and the rest as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """See the base class."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        rest = "".join(f" {name}={value}" for name, value in said(record).items() if value != "")
        line = f"{moment} {record.levelname.lower():7} {record.getMessage()}{rest}"
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line


def said(record: logging.LogRecord) -> dict[str, object]:
    """What was given as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def setup(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send the service's lines, the server's, and warnings to standard error.

    Args:
        level: the least that is shown. form: "json", "plain", or "auto": plain on a terminal.
    """
    stream = stream or sys.stderr
    plain = form == "plain" or (form == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainLines() if plain else JsonLines())
    logging.captureWarnings(True)
    for name in (LOGGER, *_OTHERS):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    # The server tells of its start and end; so do we.
    logging.getLogger("uvicorn.error").setLevel(
        max(logging.WARNING, logging.getLogger(LOGGER).level)
    )


def places(trace: TracebackType | None) -> str:
    """Where an exception came from, without its message, which may hold a request's text."""
    return "".join(traceback.format_tb(trace)).rstrip()
