"""``perplexity``: a model and a text in, how well the one foretells the other out."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.checkpoint import load_config
from xlnet_fast.errors import ArgumentError, NotFinite, XLNetFastError
from xlnet_fast.files import write_whole
from xlnet_fast.generate.run import checked_device, checkpoint_of, peak_memory_mib
from xlnet_fast.perplexity.options import STDOUT, PerplexityOptions
from xlnet_fast.perplexity.reader import Reader
from xlnet_fast.perplexity.tokens import Tokens
from xlnet_fast.perplexity.transfo_xl import TransfoXLReader
from xlnet_fast.perplexity.xlnet import XLNetReader
from xlnet_fast.predict.record_progress import RecordProgress
from xlnet_fast.predict.stopping import StopOnSignal
from xlnet_fast.text import load_text

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_READERS: dict[str, Callable[..., Reader]] = {"transfo-xl": TransfoXLReader, "xlnet": XLNetReader}
_HIGH_SHARE = 0.05
"""Of unknown words: more of them say that the text is not of the vocabulary's kind."""
_HIGHEST_LOSS = 700.0
"""Whose exponential still is a number."""


@dataclass(frozen=True)
class PerplexityResult:
    """What an evaluation gave.

    Attributes:
        metrics: ``tokens`` that were foretold, ``loss`` (their mean negative log-likelihood, in
            nats), ``perplexity`` (its exponential), ``bits_per_token``, ``bits_per_character`` and
            ``bits_per_byte`` (of the text that these tokens stand for, line ends included),
            ``characters`` and ``bytes`` of it, ``unknown_tokens`` among them that the vocabulary
            lacks, and their share ``unknown_share``, ``left_out_tokens`` that were read or not, but
            not foretold, ``seconds`` (without loading), ``tokens_per_second`` and
            ``peak_memory_mib`` (of the process, or of the GPU; left out where the system does not
            tell). Empty if the run was stopped before the first segment was done.
        settings: how it was done, the defaults too.
        of: how many tokens were to be foretold. stopped_by: the signal that ended the run before
            its end, or None.
    """

    metrics: dict[str, float]
    settings: dict[str, Any]
    of: int
    stopped_by: int | None = None

    def record(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        stopped = {"stopped_by": self.stopped_by, "of": self.of} if self.stopped_by else {}
        return {**self.settings, **self.metrics, **stopped}


def perplexity(
    options: PerplexityOptions, tell: Callable[[str], None] = lambda line: None
) -> PerplexityResult:
    """Foretell a text, token by token.

    Args:
        tell: called with what is to be known beside the result, such as how the text is read.

    Raises:
        ArgumentError: an option, a file, a model or a tokenizer that cannot be used.
        BackendUnavailable: the backend that was named cannot run.
        NotFinite: a loss is no number, as an overflow of fp16 makes it.
        XLNetFastError: the output file could not be written.
    """
    options.check()
    _check_output(options.output)
    assert options.text is not None
    text, device = load_text(options.text, min_characters=1), checked_device(options.device)
    reader = _reader(options, device)
    tokens = reader.tokens(text, options.text, options.limit)
    streams = _streams(tokens, options.batch_size)
    settings = {**_settings(options, device), **reader.settings}
    _tell(tell, tokens, streams, settings)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    count = streams.shape[0] * (streams.shape[1] - 1)
    words = ("foretelling", "foretold", "tokens")
    with StopOnSignal() as stop, RecordProgress(count, words=words) as progress:
        tally = _measure(reader, streams.to(device), progress, stop)
    stopped_by = stop.signal if tally.places < streams.shape[1] - 1 else None
    metrics = _metrics(tokens, streams, tally, peak_memory_mib(device)) if tally.places else {}
    result = PerplexityResult(metrics, settings, count, stopped_by)
    if options.output is not None and str(options.output) != STDOUT:
        _write(options.output, result)
    return result


def _reader(options: PerplexityOptions, device: torch.device) -> Reader:
    assert options.model is not None
    name = checkpoint_of(options.model)
    config = load_config(name, only_xlnet=False)
    kind = _READERS.get(config.model_type)
    if kind is None:
        raise ArgumentError(
            f"{name} is a {config.model_type} model, expected a Transformer-XL or an XLNet"
        )
    return kind(options, name, config, device, _DTYPES[options.dtype])


def _streams(tokens: Tokens, batch_size: int) -> Tensor:
    """(B, T) ids, a row for each stream; what does not fill a row of all is left out."""
    length = len(tokens) // batch_size
    if length < 2:
        raise ArgumentError(
            f"batch_size is {batch_size}, and the text has {len(tokens)} tokens, expected at least "
            f"{2 * batch_size}: two for each stream"
        )
    return torch.from_numpy(tokens.ids[: batch_size * length]).view(batch_size, length)


def _settings(options: PerplexityOptions, device: torch.device) -> dict[str, Any]:
    return {
        "model": options.model, "text": options.text, "dtype": options.dtype,
        "device": str(device), "backend": options.backend, "batch_size": options.batch_size,
    }  # fmt: skip


def _tell(
    tell: Callable[[str], None], tokens: Tokens, streams: Tensor, settings: dict[str, Any]
) -> None:
    """How the text is read, what is left out, and that words are unknown."""
    batch, length = streams.shape
    left_out = len(tokens) - batch * (length - 1)
    tell(
        f"{len(tokens):,} tokens of {settings['text']}, read as {settings['form']}; "
        f"{left_out:,} left out"
        + (": the first, which nothing foretells" if left_out == 1 else "")
        + (f": the first of each stream, {len(tokens) - batch * length:,} at the end" * (batch > 1))
    )
    share = float(tokens.unknown.mean())
    if share > _HIGH_SHARE:
        warnings.warn(
            f"the vocabulary lacks {share:.1%} of the text's tokens: the text may be of another "
            "kind than what the model was trained on, or of another form (--form)",
            stacklevel=3,
        )


@dataclass
class _Tally:
    """Of a run: the sum of losses, of how many places of each stream, in how many seconds."""

    total: float = 0.0
    places: int = 0
    seconds: float = 0.0


def _measure(
    reader: Reader, streams: Tensor, progress: RecordProgress, stop: StopOnSignal
) -> _Tally:
    """Until the end or a signal, segment by segment.

    Raises:
        NotFinite: a loss is no number.
    """
    tally, begin = _Tally(), time.perf_counter()
    for losses in reader.losses(streams):
        tally.total += float(losses.double().sum())  # waits for the device
        if not math.isfinite(tally.total):
            raise NotFinite(
                f"a loss of the tokens {tally.places + 1:,} to "
                f"{tally.places + losses.shape[1]:,} is no number: the weights are damaged, or "
                "the dtype is too narrow (take bf16 or fp32)"
            )
        tally.places += losses.shape[1]
        progress.advance(losses.numel())
        if stop.signal is not None:
            break
    tally.seconds = time.perf_counter() - begin
    return tally


def _metrics(
    tokens: Tokens, streams: Tensor, tally: _Tally, peak_mib: float | None
) -> dict[str, float]:
    batch, length = streams.shape
    first = torch.arange(batch).numpy() * length
    last = first + tally.places
    characters, size = (int((x[last] - x[first]).sum()) for x in (tokens.characters, tokens.utf8))
    unknown = sum(
        int(tokens.unknown[a + 1 : b + 1].sum()) for a, b in zip(first, last, strict=True)
    )
    count = batch * tally.places
    bits = tally.total / math.log(2)
    metrics = {
        "tokens": count,
        "loss": tally.total / count,
        "perplexity": math.exp(min(tally.total / count, _HIGHEST_LOSS)),
        "bits_per_token": bits / count,
        "bits_per_character": bits / max(characters, 1),
        "bits_per_byte": bits / max(size, 1),
        "characters": characters,
        "bytes": size,
        "unknown_tokens": unknown,
        "unknown_share": unknown / count,
        "left_out_tokens": len(tokens) - batch * (length - 1),
        "seconds": tally.seconds,
        "tokens_per_second": count / tally.seconds,
    }
    return metrics if peak_mib is None else {**metrics, "peak_memory_mib": peak_mib}


def _check_output(path: Path | None) -> None:
    """Before minutes of work: can this file be written?"""
    if path is None or str(path) == STDOUT:
        return
    if path.is_dir():
        raise ArgumentError(f"the output {path} is a folder, expected the name of a file")
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"the output {path}: the folder {path.parent} does not exist")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ArgumentError(f"the output {path} cannot be written to")


def _write(path: Path, result: PerplexityResult) -> None:
    try:
        write_whole(path, json.dumps(result.record(), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise XLNetFastError(f"{path} could not be written: {error.strerror or error}") from error
