"""Checkpoints of NVIDIA's DeepLearningExamples, ``PyTorch/LanguageModeling/Transformer-XL``.

A file of its ``train.py``, such as ``checkpoint_best.pt``: ``model_state``, ``model_config``,
``args``, ``vocab`` and the state of the training, which is left alone. The code descends from the
original (see :mod:`kimiyoung`): the clusters' order and the empty memory are the same. Other are

- names: ``out_layers_biases.{i}`` for ``out_layers.{i}.bias``, ``out_layers_weights.{i}`` for
  ``out_layers.{i}.weight``; weights and projections that are tied are left out, and the
  embeddings' projections are there a second time as ``shared_out_projs``;
- ``same_length``: a token sees ``mem_len`` tokens before it, and in the original one less. So
  ``mem_len`` becomes one more here; the row that is added is seen by no token.

Sources: ``pytorch/mem_transformer.py``, ``pytorch/utils/proj_adaptive_softmax.py``, ``train.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl.convert.found import Found
from xlnet_fast.models.transfo_xl.convert.kimiyoung import language_model, tokenizer_of, words_of
from xlnet_fast.models.transfo_xl.convert.reading import (
    fields_of,
    load,
    only_arguments,
    tensors_of,
)
from xlnet_fast.models.transfo_xl.convert.settings import merged
from xlnet_fast.models.transfo_xl.convert.shapes import BODY, HEAD, Weights

_WAY_OUT = (
    'save model_state, model_config and vocab.idx2sym of it alone, as {"model_state": ..., '
    '"model_config": ..., "vocab": ...}, and convert that'
)
_OTHER_NAME = re.compile(r"crit\.out_layers_(weight|bias)e?s\.(\d+)")
_AGAIN = f"{HEAD}shared_out_projs."


def read(path: Path, given: Mapping[str, Any]) -> Found:
    """Read a checkpoint of the training.

    Args:
        given: how the model shall be used, instead of as in training; ``mem_len`` as it is there.

    Raises:
        ArgumentError: it cannot be read, or is of another model or another attention.
    """
    content = load(path, _WAY_OUT, _stands_in)
    if not isinstance(content, Mapping) or "model_state" not in content:
        raise ArgumentError(
            f"{path} has no model_state, expected a checkpoint that the training saved"
        )
    told = fields_of(content.get("args")) | fields_of(content.get("model_config"))
    where = f"model_config in {path}"
    settings = merged(told, given, where)
    state = tensors_of(content["model_state"], f"model_state in {path}")
    found = language_model(_named(state), settings, str(path), where)
    found.symbols = words_of(content.get("vocab"), str(path))
    found.tokenizer = tokenizer_of(content.get("vocab"))
    if found.config["same_length"]:
        found.config["mem_len"] += 1
        found.notes.append(
            f"mem_len {settings['mem_len']} became {found.config['mem_len']}: with same_length a "
            "token sees one more there"
        )
    return found


def _stands_in(name: str) -> bool:
    """Objects of the training's own modules hold values; Python's would be there to be run."""
    return only_arguments(name) or name.partition(".")[0] not in sys.stdlib_module_names


def _named(state: Mapping[str, Any]) -> Weights:
    """A state dict in the names of Hugging Face."""
    weights: Weights = {}
    for name, value in state.items():
        if name.startswith(_AGAIN):
            continue
        usual = _OTHER_NAME.sub(r"crit.out_layers.\2.\1", name)
        weights[usual if usual.startswith(HEAD) else BODY + usual] = value
    return weights
