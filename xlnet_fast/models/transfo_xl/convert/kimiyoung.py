"""Checkpoints of the original PyTorch code, ``kimiyoung/transformer-xl``.

It saves the whole model as a pickle, ``model.pt``, which only its own source can read.
``export_original.py`` beside this file makes of it, there, what is read here: a file of
``torch.save({"state_dict": ..., "args": ...})``; ``"vocab"``, a list of words, may be added, and a
state dict alone will do where the rest is given. Two things differ from Hugging Face's model:

- the log-probability of cluster i is entry -i of the head there, and ``cutoffs[0] + i - 1`` here,
  so ``cluster_weight`` and ``cluster_bias`` are turned round;
- a text starts with an empty memory there, ``initial_memory="empty"``, and not with rows of zeros.

Sources: ``pytorch/mem_transformer.py``, ``pytorch/utils/proj_adaptive_softmax.py``, ``train.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl.convert.found import (
    LANGUAGE_MODEL,
    Found,
    made_whole,
    note_of_frequencies,
    ties_of,
)
from xlnet_fast.models.transfo_xl.convert.reading import fields_of, load, tensors_of
from xlnet_fast.models.transfo_xl.convert.settings import merged, needed
from xlnet_fast.models.transfo_xl.convert.shapes import (
    BODY,
    HEAD,
    Weights,
    refuse_other_models,
    sizes_of,
)

EXPORT = Path(__file__).with_name("export_original.py")
CUTOFFS = {"wt103": (20000, 40000, 200000), "lm1b": (60000, 100000, 640000)}
"""Those that ``train.py --adaptive`` has, by its ``--dataset``."""
FLIPPED = (f"{HEAD}cluster_weight", f"{HEAD}cluster_bias")
EMPTY = "empty"
_WAY_OUT = (
    f"run {EXPORT} beside the original's source, where the model was trained, and convert the file "
    "that it writes"
)


def read(path: Path, given: Mapping[str, Any]) -> Found:
    """Read a file that ``export_original.py`` wrote, or a state dict alone.

    Args:
        given: settings that the checkpoint does not tell, or how the model shall be used instead.

    Raises:
        ArgumentError: it cannot be read, is of another model or another attention, or does not tell
            all that is needed.
    """
    content = load(path, _WAY_OUT)
    parts = content if isinstance(content, Mapping) and "state_dict" in content else None
    state = tensors_of(content if parts is None else parts["state_dict"], str(path))
    weights = {name if name.startswith(HEAD) else BODY + name: x for name, x in state.items()}
    told, where = {}, "what is given" if given else "a state dict alone"
    if parts is not None:
        told, where = fields_of(parts.get("args")), f"args in {path}"
    settings = merged(told, given, where)
    notes = _known_cutoffs(settings)
    found = language_model(weights, settings, str(path), where)
    vocabulary = None if parts is None else parts.get("vocab")
    found.symbols = words_of(vocabulary, str(path))
    found.tokenizer = tokenizer_of(vocabulary)
    found.notes += notes
    return found


def language_model(weights: Weights, settings: Mapping[str, Any], what: str, where: str) -> Found:
    """The model of weights that are in the names of Hugging Face, and else as the original's.

    Args:
        settings: all that is told and given. what, where: what the weights and what tells the
            settings are called in a message.

    Raises:
        ArgumentError: as :func:`read`.
    """
    refuse_other_models(weights, settings, what)
    sizes = sizes_of(weights, settings, what, where)
    config = sizes | ties_of(weights, sizes, settings, what, where) | needed(settings, where)
    config |= {"initial_memory": EMPTY, "adaptive": bool(sizes["cutoffs"])}
    notes = note_of_frequencies(weights)
    if settings.get("ext_len"):
        notes.append(
            f"ext_len {settings['ext_len']} is left out: a longer memory takes the place of an "
            "extended context"
        )
    weights = dict(weights)
    flipped = tuple(name for name in FLIPPED if name in weights)
    for name in flipped:
        weights[name] = weights[name].flip(0)
    whole = made_whole(weights, config, LANGUAGE_MODEL, what)
    return Found(whole, config, LANGUAGE_MODEL, flipped=flipped, notes=notes)


def _known_cutoffs(settings: dict[str, Any]) -> list[str]:
    """Add the cutoffs of the training's data set, where nothing else tells them; say so."""
    dataset = settings.get("dataset")
    if "cutoffs" in settings or not settings.get("adaptive") or dataset not in CUTOFFS:
        return []
    if settings.get("div_val", 1) != 1:
        return []  # the tables tell them
    settings["cutoffs"] = list(CUTOFFS[dataset])
    return [f"the cutoffs are those that the original has for {dataset}"]


def words_of(vocabulary: Any, what: str) -> list[str] | None:
    """The words of a list, or of a vocabulary's object; None where there are none.

    Raises:
        ArgumentError: they are no words.
    """
    words = fields_of(vocabulary).get("idx2sym", vocabulary)
    if not isinstance(words, (list, tuple)):
        return None
    if not all(isinstance(word, str) for word in words):
        raise ArgumentError(f"the vocabulary in {what} has entries that are no words")
    if len(set(words)) < len(words):
        raise ArgumentError(f"the vocabulary in {what} has a word twice, expected each once")
    return list(words)


def tokenizer_of(vocabulary: Any) -> dict[str, Any]:
    """How the original's vocabulary splits a line: at its delimiter, without one at white space."""
    told = fields_of(vocabulary)
    delimiter = told.get("delimiter")
    return {
        "lower_case": bool(told.get("lower_case", False)),
        "delimiter": delimiter,
        "tokenized": delimiter is None,
    }
