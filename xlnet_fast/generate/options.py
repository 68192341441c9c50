"""What a generation is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.options import COMMON, MACHINE, check_ranges, option

SEARCH = "Search and sampling"
READING = "Reading the prompt"
GROUPS = (COMMON, SEARCH, READING, MACHINE)
"""The panels of the command's ``--help``, in order."""

DTYPES = ("fp32", "bf16", "fp16")
USUAL_BATCH_SIZE = 8
_OF_SAMPLING = ("temperature", "top_k", "top_p")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """One generation; each field's help is in its metadata (``xlnet-fast generate --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    model: str | None = option(
        COMMON, "Folder or Hub id; of a run of pretrain, its --output", None,
        metavar="MODEL", argument=True,
    )  # fmt: skip
    prompt: tuple[str, ...] = option(COMMON, "Text to go on from; repeatable", (), metavar="TEXT")
    file: str | None = option(
        COMMON, "UTF-8, one prompt a line; -: standard input", None, metavar="FILE"
    )
    max_new_tokens: int = option(COMMON, "Most tokens to write", 50)
    stream: bool = option(COMMON, "Print words as they are written", False)
    output: Path | None = option(COMMON, "Write JSON lines to it (-: stdout)", None, metavar="FILE")

    sample: bool = option(SEARCH, "Draw tokens; else the likeliest is taken", False)
    temperature: float | None = option(SEARCH, "Above 1: more even chances", None, "the model's")
    top_k: int | None = option(SEARCH, "Among the likeliest so many", None, "the model's")
    top_p: float | None = option(SEARCH, "Among these with this mass", None, "the model's")
    seed: int = option(SEARCH, "Seed of what is drawn", 0)
    num_beams: int = option(SEARCH, "Beams of the search", 1)
    num_return_sequences: int = option(SEARCH, "Texts for each prompt", 1)
    repetition_penalty: float | None = option(
        SEARCH, "Above 1: against repeating", None, "the model's"
    )
    prompt_lookup: int | None = option(SEARCH, "Guess so many tokens from the text", None)

    prefix: str | None = option(
        READING, "Text before every prompt, not printed", None, metavar="TEXT"
    )
    segment_length: int | None = option(READING, "Read through memory in such parts", None, "whole")
    tokenizer: str | None = option(READING, "Folder or Hub id", None, "the model's")

    memory: bool = option(MACHINE, "Read all again for each token", True)
    batch_size: int | None = option(
        MACHINE, "Prompts at once", None, f"{USUAL_BATCH_SIZE}, streaming 1"
    )
    dtype: str = option(MACHINE, ", ".join(DTYPES), "fp32")
    device: str | None = option(MACHINE, "cpu, cuda or cuda:N", None, "the GPU if any")
    backend: str = option(MACHINE, "Backend of the attention", "auto")

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        if not self.model:
            raise ArgumentError(
                "no model was given, expected a folder or a Hub id: xlnet-fast generate RUN, where "
                "RUN is the --output of xlnet-fast pretrain, or xlnet/xlnet-base-cased, say"
            )
        if self.dtype not in DTYPES:
            raise ArgumentError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        self._check_ranges()
        if not self.prompt and self.file is None:
            raise ArgumentError("no prompt was given, expected --prompt TEXT or --file FILE")
        self._check_search()
        if self.segment_length is not None and not self.memory:
            raise ArgumentError("segment_length needs the memory that --no-memory leaves out")

    def _check_ranges(self) -> None:
        check_ranges(self, _RANGES)
        for name in ("temperature", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ArgumentError(f"{name} is {value}, expected more than 0")

    def _check_search(self) -> None:
        """What does not go together, or would be read by nothing."""
        if not self.sample:
            for name in _OF_SAMPLING:
                if getattr(self, name) is not None:
                    raise ArgumentError(f"{name} is of sampling, expected --sample with it")
            if self.num_return_sequences > self.num_beams:
                raise ArgumentError(
                    f"num_return_sequences is {self.num_return_sequences}, but a search with "
                    f"{self.num_beams} beam(s) finds no more texts than beams: add --sample, or "
                    f"--num-beams {self.num_return_sequences}"
                )
        elif 1 < self.num_beams < self.num_return_sequences:
            raise ArgumentError(
                f"num_return_sequences is {self.num_return_sequences}, expected at most num_beams, "
                f"{self.num_beams}"
            )
        alone = self.num_beams == 1 and self.num_return_sequences == 1
        if self.stream and not (alone and self.batch_size in (None, 1)):
            raise ArgumentError(
                "stream prints one text as it is written, expected --num-beams, "
                "--num-return-sequences and --batch-size of 1"
            )
        if self.prompt_lookup is not None and not (alone and self.batch_size in (None, 1)):
            raise ArgumentError(
                "prompt_lookup works on one text, expected --num-beams, --num-return-sequences "
                "and --batch-size of 1"
            )

    @property
    def prompts_at_once(self) -> int:
        """The batch size, or what it is by default."""
        if self.batch_size is not None:
            return self.batch_size
        return 1 if self.stream or self.prompt_lookup is not None else USUAL_BATCH_SIZE

    def search(self) -> dict[str, Any]:
        """The arguments of Hugging Face's ``generate``; what was not given is left out."""
        given = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "prompt_lookup_num_tokens": self.prompt_lookup,
        }
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.sample,
            "num_beams": self.num_beams,
            "num_return_sequences": self.num_return_sequences,
            "use_mems": self.memory,
            **{name: value for name, value in given.items() if value is not None},
        }


_RANGES: dict[str, tuple[float, float | None]] = {
    "max_new_tokens": (1, None), "num_beams": (1, None), "num_return_sequences": (1, None),
    "top_k": (0, None), "top_p": (0, 1), "seed": (0, None), "segment_length": (2, None),
    "prompt_lookup": (1, None), "batch_size": (1, None),
}  # fmt: skip
