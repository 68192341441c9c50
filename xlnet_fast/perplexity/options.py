"""What an evaluation on text is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.options import COMMON, MACHINE, check_ranges, option

READING = "Reading the text"
ATTENDING = "Segments and memory"
GROUPS = (COMMON, READING, ATTENDING, MACHINE)
"""The panels of the command's ``--help``, in order."""

DTYPES = ("fp32", "bf16", "fp16")
AUTO, TOKENIZED, RAW, CHARACTERS, BYTES = "auto", "tokenized", "raw", "characters", "bytes"
FORMS = (AUTO, TOKENIZED, RAW, CHARACTERS, BYTES)
EMPTY, ZEROS = "empty", "zeros"
MEMORIES = (EMPTY, ZEROS)
USUAL_SEGMENT_LENGTH = 128
"""Of the original's evaluation on WikiText-103."""
STDOUT = "-"
"""The output that stands for standard output."""


@dataclass(frozen=True, kw_only=True)
class PerplexityOptions:
    """One evaluation; each field's help is in its metadata (``xlnet-fast perplexity --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    model: str | None = option(
        COMMON, "Folder or Hub id; of a run of pretrain, its --output", None,
        metavar="MODEL", argument=True,
    )  # fmt: skip
    text: str | None = option(COMMON, "UTF-8 text to foretell", None, metavar="FILE")
    output: Path | None = option(COMMON, "Write JSON to it (-: stdout)", None, metavar="FILE")
    limit: int | None = option(COMMON, "Read so many tokens, not more", None)

    form: str = option(READING, f"{', '.join(FORMS)}; auto: tokenized if commas stand apart", AUTO)
    tokenizer: str | None = option(READING, "Folder or vocabulary file", None, "the model's")
    batch_size: int = option(READING, "Cut the text into so many streams", 1)

    segment_length: int = option(ATTENDING, "Tokens of a segment", USUAL_SEGMENT_LENGTH)
    memory_length: int | None = option(ATTENDING, "Tokens remembered", None, "the model's")
    clamp_len: int | None = option(ATTENDING, "Largest distance; 0: any", None, "the model's")
    same_length: bool | None = option(ATTENDING, "Each token sees as many", None, "the model's")
    initial_memory: str = option(ATTENDING, f"At the start: {' or '.join(MEMORIES)}", EMPTY)

    dtype: str = option(MACHINE, ", ".join(DTYPES), "fp32")
    device: str | None = option(MACHINE, "cpu, cuda or cuda:N", None, "the GPU if any")
    backend: str = option(MACHINE, "Backend of the attention", "auto")

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        if not self.model:
            raise ArgumentError(
                "no model was given, expected a folder or a Hub id: xlnet-fast perplexity MODEL "
                "--text FILE"
            )
        if not self.text:
            raise ArgumentError("no text was given, expected --text FILE")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ArgumentError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        check_ranges(self, _RANGES)


_CHOICES = {"form": FORMS, "initial_memory": MEMORIES, "dtype": DTYPES}
_RANGES: dict[str, tuple[float, float | None]] = {
    "limit": (2, None), "batch_size": (1, None), "segment_length": (1, None),
    "memory_length": (0, None), "clamp_len": (0, None),
}  # fmt: skip
