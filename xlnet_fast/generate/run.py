"""``generate``: prompts in, texts out, by Hugging Face's ``generate`` of an accelerated model."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from xlnet_fast.checkpoint import first_line, load_config, load_weights, quiet
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.files import write_whole
from xlnet_fast.generate.options import GenerateOptions
from xlnet_fast.generate.prompts import Prompt, encode, gather, side_by_side
from xlnet_fast.generate.segments import read_in_segments, repeated
from xlnet_fast.generate.transfo_xl import (
    MODEL_TYPE,
    is_transfo_xl,
    load_transfo_xl_and_words,
)
from xlnet_fast.hf import accelerate
from xlnet_fast.hf.versions import MEMORY_NAME
from xlnet_fast.train.shared.tokenizers import check_vocabulary, load_run_tokenizer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LM_CLASS = "XLNetLMHeadModel"
STDOUT = "-"
"""The output that stands for standard output."""


@dataclass(frozen=True)
class Text:
    """What was written for a prompt.

    Attributes:
        prompt: as given. text: what follows it, from the first character on. new_tokens: of it, the
            one that ended it included. ended: whether such a one came, before there were too many.
        whole: prompt and text as the tokenizer gives them, without the prefix.
    """

    prompt: str
    text: str
    new_tokens: int
    ended: bool
    whole: str


@dataclass(frozen=True)
class GenerateResult:
    """What a generation gave.

    Attributes:
        texts: prompt after prompt, ``num_return_sequences`` for each.
        metrics: ``new_tokens``, ``seconds`` (reading and writing, without loading),
            ``tokens_per_second`` of all texts, ``ms_per_token`` (the mean time of a step, in which
            every text of a batch gets one), ``peak_memory_mib`` (of the process, or of the GPU;
            left out where the system does not tell).
    """

    texts: list[Text]
    metrics: dict[str, float]


def generate(options: GenerateOptions, say: Callable[[str], None] = print) -> GenerateResult:
    """Go on from prompts.

    Args:
        say: called with each text when it is done, unless it is streamed to standard output or
            written to a file.

    Raises:
        ArgumentError: an option, a prompt, a file, a model or a tokenizer that cannot be used.
        BackendUnavailable: the backend that was named cannot run.
        XLNetFastError: the output file could not be written.
    """
    options.check()
    _check_output(options.output)
    texts = gather(options.prompt, options.file)
    device = checked_device(options.device)
    model, tokenizer = load(options, device)
    prompts = [encode(tokenizer, text, options.prefix) for text in texts]
    _warn_of_memory(model, prompts, options)
    torch.manual_seed(options.seed)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    written: list[Text] = []
    steps, seconds = 0, 0.0
    for first in range(0, len(prompts), options.prompts_at_once):
        batch = prompts[first : first + options.prompts_at_once]
        start = time.perf_counter()
        tokens, count = write(model, tokenizer, batch, options)
        seconds += time.perf_counter() - start
        steps += count
        for text in tokens:
            written.append(text)
            if not options.stream and options.output is None:
                say(text.whole)
    result = GenerateResult(written, _metrics(written, steps, seconds, device))
    if options.output is not None:
        _write(options.output, result)
    return result


def load(options: GenerateOptions, device: torch.device) -> tuple[Any, Any]:
    """The accelerated model in the dtype and on the device that were asked for; the tokenizer.

    Raises:
        ArgumentError: either cannot be read, they do not fit, or the model has no language head.
    """
    assert options.model is not None
    name = checkpoint_of(options.model)
    config = load_config(name, only_xlnet=False)
    if config.model_type == MODEL_TYPE:
        model, tokenizer = load_transfo_xl_and_words(options, name)
        return model.eval().to(device=device, dtype=_DTYPES[options.dtype]), tokenizer
    if config.model_type != "xlnet":
        raise ArgumentError(
            f"{name} is a {config.model_type} model, expected an XLNet or a Transformer-XL"
        )
    heads = config.architectures or [LM_CLASS]
    if LM_CLASS not in heads:
        raise ArgumentError(
            f"{name} is an {heads[0]}, which has no language model head: expected an {LM_CLASS}, "
            "such as what xlnet-fast pretrain leaves"
        )
    tokenizer = load_run_tokenizer(options.tokenizer, name)
    model = load_weights(name, LM_CLASS).eval()
    check_vocabulary(tokenizer, model.config.vocab_size, name)
    transformer = model.transformer
    if transformer.reuse_len or transformer.bi_data:
        warnings.warn(
            f"{name} has reuse_len {transformer.reuse_len} and bi_data {transformer.bi_data}, "
            "which are of pretraining: text is written without them",
            stacklevel=2,
        )
        # The config too: Hugging Face's heads look there.
        transformer.reuse_len = model.config.reuse_len = None
        transformer.bi_data = model.config.bi_data = False
    model.to(device=device, dtype=_DTYPES[options.dtype])
    return accelerate(model, options.backend), tokenizer


def checkpoint_of(name: str) -> str:
    """The checkpoint that a name stands for: of a run's folder its model, or the newest so far."""
    folder = Path(name).expanduser()
    if not folder.is_dir() or (folder / "config.json").is_file():
        return name
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if any(folder.glob("checkpoint-*")):
        from xlnet_fast.train.shared.checkpoints import newest_checkpoint

        newest = newest_checkpoint(folder)
        if newest is not None:
            return str(newest)
    return name


def checked_device(name: str | None) -> torch.device:
    """The device of a name, by default the GPU if there is one.

    Raises:
        ArgumentError: no such device is here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(
            f"device is {name}, but torch sees {torch.cuda.device_count()} GPUs here"
        )
    return device


@torch.no_grad()
def write(
    model: Any, tokenizer: Any, prompts: list[Prompt], options: GenerateOptions, **further: Any
) -> tuple[list[Text], int]:
    """Go on from the prompts of one batch.

    Args:
        model: an ``XLNetLMHeadModel``, accelerated where prompts are of unequal length, or a
            ``TransfoXLLMHeadModel``.
        options: how; what names the model, prompts and files is not read.
        further: arguments of Hugging Face's ``generate`` beside, such as ``stopping_criteria``.

    Returns:
        The texts, ``num_return_sequences`` for each prompt, and how many tokens the longest has.

    Raises:
        ArgumentError: the prompts cannot stand side by side, or ``generate`` refuses an argument.
    """
    ids, mask = side_by_side(prompts, tokenizer.pad_token_id)
    ids = ids.to(model.device)
    search = {**options.search(), **further}
    if is_transfo_xl(model):
        del search["use_mems"]  # it has no other way
    if mask is not None:
        search["attention_mask"] = mask = mask.to(model.device)
    else:
        search["attention_mask"] = torch.ones_like(ids)
    if options.stream:
        search["streamer"] = PromptStreamer(tokenizer, prompts[0].hidden)
    if options.segment_length is not None and ids.shape[1] > options.segment_length:
        memory = read_in_segments(model, ids, options.segment_length, mask)
        copies = max(options.num_beams, options.num_return_sequences)
        search[MEMORY_NAME] = list(repeated(memory, copies))
    with quiet(), warnings.catch_warnings():
        # Of the memory of segments, which is of these very ids.
        warnings.filterwarnings("ignore", r"generate\(\) reads the last two of input_ids")
        try:
            sequences = model.generate(ids, **search)
        except XLNetFastError:
            raise
        except ValueError as error:  # how Hugging Face refuses arguments
            raise ArgumentError(f"Hugging Face's generate refuses: {first_line(error)}") from error
    ends = model.generation_config.eos_token_id
    rows = sequences[:, ids.shape[1] :].tolist()
    if "stopping_criteria" in further:  # a text may have ended without a token that says so
        rows = [_unpadded(row, tokenizer.pad_token_id) for row in rows]
    ends = set(ends if isinstance(ends, list) else [ends])
    each = options.num_return_sequences
    texts = [_text(tokenizer, prompts[i // each], row, ends) for i, row in enumerate(rows)]
    return texts, sequences.shape[1] - ids.shape[1]


def _unpadded(row: list[int], pad_token_id: int) -> list[int]:
    """Without the padding that follows where a text ended before the others of its batch."""
    end = len(row)
    while end and row[end - 1] == pad_token_id:
        end -= 1
    return row[:end]


def _text(tokenizer: Any, prompt: Prompt, row: list[int], ends: set[int]) -> Text:
    """A row of ``generate`` without the prompt, cut at its end: padding follows there."""
    end = next((place for place, token in enumerate(row) if token in ends), None)
    new = row if end is None else row[: end + 1]
    own = prompt.ids[prompt.hidden :]
    head, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (own, own + new))
    # A word that is gone on with may be spelt differently: then the text begins with it.
    text = whole[len(head) :] if whole.startswith(head) else tokenizer.decode(
        new, skip_special_tokens=True
    )  # fmt: skip
    return Text(prompt.text, text, len(new), end is not None, whole)


class PromptStreamer(TextStreamer):
    """Prints the prompt, without its prefix, and each word after it as soon as it is there."""

    def __init__(self, tokenizer: Any, hidden: int) -> None:
        """``hidden``: how many tokens of the prompt are its prefix."""
        super().__init__(tokenizer, skip_special_tokens=True)
        self._hidden = hidden

    def put(self, value: Tensor) -> None:
        """As the base class; the first call has the (1, I) ids of the prompt."""
        hidden, self._hidden = self._hidden, 0
        super().put(value[..., hidden:])


def _warn_of_memory(model: Any, prompts: list[Prompt], options: GenerateOptions) -> None:
    """Tell what a prompt loses that is longer than what the model remembers."""
    if is_transfo_xl(model):
        return  # whose memory ends where its sight does
    kept, longest = model.transformer.mem_len, max(len(prompt.ids) for prompt in prompts)
    if kept and options.memory and longest > kept:
        warnings.warn(
            f"the model remembers {kept} tokens (mem_len) and a prompt has {longest}: its first "
            f"{longest - kept} are forgotten as the text is written, and more with each token; "
            "--no-memory reads all again for every token",
            stacklevel=2,
        )


def _metrics(
    texts: list[Text], steps: int, seconds: float, device: torch.device
) -> dict[str, float]:
    new = sum(text.new_tokens for text in texts)
    metrics = {
        "new_tokens": new,
        "seconds": seconds,
        "tokens_per_second": new / seconds,
        "ms_per_token": 1e3 * seconds / steps,
    }
    peak = peak_memory_mib(device)
    return metrics if peak is None else {**metrics, "peak_memory_mib": peak}


def peak_memory_mib(device: torch.device) -> float | None:
    """The most memory so far: a GPU's tensors, or all of this process; None if nobody knows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


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


def _write(path: Path, result: GenerateResult) -> None:
    lines = [json.dumps(asdict(text), ensure_ascii=False) + "\n" for text in result.texts]
    if str(path) == STDOUT:
        print("".join(lines), end="", flush=True)
        return
    try:
        write_whole(path, "".join(lines))
    except OSError as error:
        raise XLNetFastError(f"{path} could not be written: {error.strerror or error}") from error
