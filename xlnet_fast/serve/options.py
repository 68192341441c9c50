"""What a service is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.options import COMMON, MACHINE, check_ranges, option

READING = "Reading of texts"
LIMITS = "Limits"
VERSIONS = "Versions"
SECURITY = "Security"
GROUPS = (COMMON, READING, LIMITS, VERSIONS, SECURITY, MACHINE)
"""The panels of the command's ``--help``, in order."""

DTYPES = ("fp32", "bf16", "fp16")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "json", "plain")
LONG = ("window", "memory", "truncate")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a model may be called."""
VERSION = re.compile(r"[1-9][0-9]{0,17}")
"""What a version may be called."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """One service; each field's help is in its metadata (``xlnet-fast serve --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    models: str | None = option(
        COMMON, "A model (folder, Hub id), or a folder of models: NAME/VERSION/", None,
        metavar="MODEL|MODELS_DIR", argument=True,
    )  # fmt: skip
    name: str | None = option(COMMON, "Of the one model", None, "the folder's")
    host: str = option(COMMON, "Address to listen at", "127.0.0.1", metavar="ADDRESS")
    port: int = option(COMMON, "0: any that is free", 8080)
    log_level: str = option(COMMON, ", ".join(LOG_LEVELS), "info")
    log_format: str = option(COMMON, ", ".join(LOG_FORMATS), "auto", "JSON; a terminal: plain")
    drain: float = option(COMMON, "Seconds to end what is in flight", 30.0)

    task: str | None = option(READING, "What it answers", None, "the checkpoint's")
    tokenizer: str | None = option(READING, "Folder or Hub id", None, "the model's")
    long: str = option(READING, f"Long texts: {', '.join(LONG)}", "window")
    max_length: int = option(READING, "Tokens of a sequence", 512)
    stride: int = option(READING, "Tokens that windows share", 128)

    timeout: float = option(LIMITS, "Seconds for a request", 30.0)
    body_bytes: int = option(LIMITS, "Of a request", 4 << 20)
    max_records: int = option(LIMITS, "Of a request", 128)
    max_tokens: int = option(LIMITS, "Of a record", 16384)
    queue_tokens: int = option(LIMITS, "That wait for a model, before 429", 131072)
    max_requests: int = option(LIMITS, "At once, before 429", 1024)

    poll: float = option(VERSIONS, "Seconds between looks for versions; 0: on SIGHUP", 5.0)
    keep: int = option(VERSIONS, "Newest versions that are served", 1)

    tokens_file: Path | None = option(
        SECURITY, "Bearer tokens, one a line", None, "no authentication", metavar="FILE"
    )
    load_from: Path | None = option(
        SECURITY, "Folder from which requests may load models", None, "none"
    )
    allow_pickle: bool = option(SECURITY, "Load weights that are no safetensors", False)

    batch_tokens: int = option(MACHINE, "Of a batch, padding included", 1024)
    threads: int | None = option(MACHINE, "Of PyTorch, for a model", None, "PyTorch's")
    dtype: str = option(MACHINE, ", ".join(DTYPES), "fp32")
    device: str | None = option(MACHINE, "cpu, cuda or cuda:N", None, "the GPU if any")
    backend: str = option(MACHINE, "Backend of the attention", "auto")

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        if not self.models:
            raise ArgumentError(
                "no model was given, expected a folder or a Hub id, or a folder of models: "
                "xlnet-fast serve RUN, where RUN is the --output of xlnet-fast finetune"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ArgumentError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        check_ranges(self, _RANGES)
        for name in ("timeout", "drain"):
            if not 0 < getattr(self, name) < 86400:
                raise ArgumentError(
                    f"{name} is {getattr(self, name)}, expected seconds: more than 0, below a day"
                )
        if self.name is not None and not NAME.fullmatch(self.name):
            raise ArgumentError(
                f"name is {self.name!r}, expected letters, digits, '.', '_' and '-', and a letter "
                "or digit first"
            )
        if self.max_tokens > self.queue_tokens:
            raise ArgumentError(
                f"max_tokens is {self.max_tokens}, expected at most queue_tokens, "
                f"{self.queue_tokens}: a record would never be taken"
            )
        for name, is_there in (("tokens_file", Path.is_file), ("load_from", Path.is_dir)):
            path = getattr(self, name)
            if path is not None and not is_there(path):
                raise ArgumentError(f"{name}: {path} does not exist")


_CHOICES = {"dtype": DTYPES, "log_level": LOG_LEVELS, "log_format": LOG_FORMATS, "long": LONG}
_RANGES: dict[str, tuple[float, float | None]] = {
    "port": (0, 65535), "body_bytes": (1024, None), "max_records": (1, None),
    "max_tokens": (1, None), "queue_tokens": (1, None), "max_requests": (1, None),
    "poll": (0, 86400), "keep": (1, None), "batch_tokens": (1, None), "threads": (1, None),
}  # fmt: skip
