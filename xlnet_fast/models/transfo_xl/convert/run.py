"""``convert``: read a checkpoint of another code, check it, write it as one of this package's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl.convert import huggingface, kimiyoung, nvidia
from xlnet_fast.models.transfo_xl.convert.found import (
    FREQUENCIES,
    LANGUAGE_MODEL,
    Found,
    shared_names,
)
from xlnet_fast.models.transfo_xl.convert.reading import check_name
from xlnet_fast.models.transfo_xl.convert.shapes import HEAD
from xlnet_fast.models.transfo_xl.convert.writing import check_output, write
from xlnet_fast.models.transfo_xl.vocabulary import read_vocabulary

_READERS = {"hf": huggingface.read, "kimiyoung": kimiyoung.read, "nvidia": nvidia.read}
SOURCES = tuple(_READERS)
Row = tuple[str, str]


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        output: the folder; ``AutoModelForCausalLM.from_pretrained`` reads it, once
            ``xlnet_fast.models.transfo_xl`` was imported.
        rows: name and value of what is worth telling. notes: sentences on what was changed.
    """

    output: Path
    rows: list[Row]
    notes: list[str]


def convert(
    source: Path,
    output: Path,
    kind: str,
    *,
    given: Mapping[str, Any] | None = None,
    vocabulary: Path | None = None,
    overwrite: bool = False,
) -> Converted:
    """Convert a checkpoint.

    Args:
        source: a folder of "hf", a file of "kimiyoung" or "nvidia". output: a folder to make.
        kind: one of ``SOURCES``: whose checkpoint it is.
        given: settings that the checkpoint does not tell, such as ``clamp_len``; of ``mem_len``,
            ``clamp_len``, ``same_length``, ``dropout`` and ``dropatt`` also others than it tells.
        vocabulary: file of the words; by default what the checkpoint has.
        overwrite: replace an earlier checkpoint in the output folder.

    Raises:
        ArgumentError: the checkpoint cannot be read, is damaged, contradicts itself or what is
            given, or is no Transformer-XL of attention type 0; nothing is written then.
        XLNetFastError: the folder could not be written.
    """
    if kind not in _READERS:
        raise ArgumentError(f"kind is {kind!r}, expected one of {', '.join(SOURCES)}")
    source, output = source.expanduser(), output.expanduser()
    for path in (source, output, vocabulary):
        if path is not None:
            check_name(path)
    check_output(source, output, overwrite)
    found = _READERS[kind](source, given or {})
    tokenizer = None
    if vocabulary is None and kind == "hf":
        vocabulary = huggingface.vocabulary_in(source)
        tokenizer = source if vocabulary is not None else None
    if vocabulary is not None:
        found.symbols = read_vocabulary(vocabulary).symbols
    write(found, output, tokenizer)
    return Converted(output, _rows(found), found.notes)


def _rows(found: Found) -> list[Row]:
    config = found.config
    heads = f"{config['n_head']} heads of {config['d_head']}"
    biases = "of each layer" if config["untie_r"] else "one pair for all layers"
    clamped = config["clamp_len"]
    rows = [
        ("model", found.architecture),
        ("layers", f"{config['n_layer']}, {'pre' if config['pre_lnorm'] else 'post'}-norm"),
        ("sizes", f"d_model {config['d_model']}, {heads}, d_inner {config['d_inner']}"),
        ("positions", f"biases {biases}; clamp_len {clamped if clamped > 0 else 'none'}"),
        ("words", _words(config)),
        ("parameters", f"{_parameters(found):,}, {next(iter(found.weights.values())).dtype}"),
        ("memory", _memory(config)),
        ("vocabulary", "none" if found.symbols is None else f"{len(found.symbols):,} words"),
    ]
    if found.architecture == LANGUAGE_MODEL:
        rows += [("turned round", _names(found.flipped)), ("tied", _tied(config))]
    return rows


def _words(config: Mapping[str, Any]) -> str:
    widths = f"d_embed {config['d_embed']}"
    if not config["cutoffs"]:
        return f"{config['vocab_size']:,}, {widths}, one cluster"
    cutoffs = ", ".join(map(str, config["cutoffs"]))
    return f"{config['vocab_size']:,}, {widths}, div_val {config['div_val']}, cutoffs {cutoffs}"


def _memory(config: Mapping[str, Any]) -> str:
    start = config.get("initial_memory", "zeros")
    start = "starts empty" if start == "empty" else "starts with zeros"
    window = "same_length" if config["same_length"] else "all of it is seen"
    return f"mem_len {config['mem_len']}, {start}; {window}"


def _tied(config: Mapping[str, Any]) -> str:
    words = ["words"] if config["tie_word_embeddings"] else []
    exist = config["div_val"] != 1 or config["d_model"] != config["d_embed"]
    numbers = [str(number) for number, one in enumerate(config["tie_projs"]) if one and exist]
    return (
        "; ".join([*words, *([f"projections {', '.join(numbers)}"] if numbers else [])]) or "none"
    )


def _names(flipped: tuple[str, ...]) -> str:
    return ", ".join(name.removeprefix(HEAD) for name in flipped) or "nothing"


def _parameters(found: Found) -> int:
    """How many, tied ones once."""
    shared = shared_names(found.config, found.architecture == LANGUAGE_MODEL)
    names = (name for name in found.weights if name not in shared and name != FREQUENCIES)
    return sum(found.weights[name].numel() for name in names)
