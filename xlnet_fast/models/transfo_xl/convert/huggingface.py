"""Checkpoint folders of Hugging Face's own Transformer-XL, of any of its releases.

``config.json`` with ``pytorch_model.bin`` or ``model.safetensors``, whole or in parts. What 4.37,
the last release that ran them, made of a folder is what is written: its memory starts with rows of
zeros, and weights that ``config.json`` ties are one. ``tie_weight`` is the first releases' word for
``tie_word_embeddings``; 4.37 no longer read it, and tied what was trained untied.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl.configuration import TransfoXLConfig
from xlnet_fast.models.transfo_xl.convert.found import (
    LANGUAGE_MODEL,
    SCORE,
    Found,
    architecture_of,
    made_whole,
    note_of_frequencies,
    ties_of,
)
from xlnet_fast.models.transfo_xl.convert.reading import load, read_json, tensors_of
from xlnet_fast.models.transfo_xl.convert.settings import merged, needed
from xlnet_fast.models.transfo_xl.convert.shapes import (
    BODY,
    HEAD,
    Weights,
    refuse_other_models,
    sizes_of,
)
from xlnet_fast.models.transfo_xl.vocabulary import FILES

CONFIG = "config.json"
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
_SIZES = (
    "vocab_size", "cutoffs", "d_model", "d_embed", "n_head", "d_head", "d_inner", "div_val",
    "n_layer", "untie_r", "tie_projs", "tie_word_embeddings", "pre_lnorm", "same_length", "mem_len",
    "clamp_len", "dropout", "dropatt", "attn_type", "sample_softmax",
)  # fmt: skip
_NOT_KEPT = (
    "tie_weight", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map",
    "quantization_config",
)  # fmt: skip
_WAY_OUT = "save the model's state_dict() alone"


def read(path: Path, given: Mapping[str, Any]) -> Found:
    """Read a checkpoint folder.

    Args:
        given: how the model shall be used, instead of as ``config.json`` says.

    Raises:
        ArgumentError: the folder has no such checkpoint, or one that is damaged or contradicts
            itself.
    """
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise ArgumentError(f"{path} {state}, expected a folder with {CONFIG} and {PICKLED}")
    what = str(path)
    said = _config(path)
    try:
        config = TransfoXLConfig(**said)
    except ArgumentError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of what every model has
        raise ArgumentError(
            f"{path / CONFIG} has an entry of another type than transformers expects: {error}"
        ) from error
    told = {name: getattr(config, name) for name in _SIZES}
    settings = merged(told, given, CONFIG)
    weights = _prefixed(_weights(path))
    refuse_other_models(weights, settings, what)
    architecture = architecture_of(weights)
    sizes = sizes_of(weights, settings, what, CONFIG)
    ties = {name: settings[name] for name in ("tie_word_embeddings", "tie_projs")}
    if architecture == LANGUAGE_MODEL:
        ties = ties_of(weights, sizes, settings, what, CONFIG)
    found = {**said, **sizes, **ties, **needed(settings, CONFIG)}
    found["eos_token_id"] = config.eos_token_id
    notes = note_of_frequencies(weights)
    whole = made_whole(weights, found, architecture, what)
    return Found(whole, found, architecture, notes=notes)


def vocabulary_in(path: Path) -> Path | None:
    """The file of a folder's vocabulary, the one that its tokenizer reads; None: there is none."""
    return next((path / name for name in FILES.values() if (path / name).is_file()), None)


def _config(path: Path) -> dict[str, Any]:
    """Arguments of the config that ``config.json`` holds."""
    said = read_json(path / CONFIG)
    kind = said.get("model_type", TransfoXLConfig.model_type)
    if kind != TransfoXLConfig.model_type:
        raise ArgumentError(f"{path} is a {kind} model, expected a Transformer-XL")
    if "tie_weight" in said:  # the word of the first releases
        said.setdefault("tie_word_embeddings", bool(said["tie_weight"]))
    labels = said.get("num_labels")  # of which transformers 4 takes anything, with a warning
    if not isinstance(labels, (int, type(None))):
        raise ArgumentError(
            f"{path / CONFIG} has an entry of another type than transformers expects: num_labels "
            f"is {labels!r}"
        )
    for other, name in TransfoXLConfig.attribute_map.items():
        if other in said:
            said.setdefault(name, said[other])
            del said[other]
    return {name: value for name, value in said.items() if name not in _NOT_KEPT}


def _weights(path: Path) -> Weights:
    """The weights of all files of a folder."""
    for whole in (SAFE, PICKLED):
        if (path / whole).is_file():
            return _file(path / whole)
        index = path / f"{whole}.index.json"
        if index.is_file():
            return _parts(path, index)
    raise ArgumentError(f"{path} holds neither {SAFE} nor {PICKLED}, so there are no weights")


def _parts(path: Path, index: Path) -> Weights:
    """The weights of the files that an index names; they lie beside it."""
    parts = read_json(index).get("weight_map")
    files = list(parts.values()) if isinstance(parts, dict) else []
    if not files or not all(isinstance(name, str) and name for name in files):
        raise ArgumentError(f"{index} has no weight_map, expected weights and their files")
    weights: Weights = {}
    for name in sorted(set(files)):
        weights |= _file(path / Path(name).name)
    return weights


def _file(path: Path) -> Weights:
    if path.suffix != ".safetensors":
        return tensors_of(load(path, _WAY_OUT), str(path))
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # of its parser, and of a file that is not there
        raise ArgumentError(
            f"{path} cannot be read: it is no file of safetensors, or damaged or cut short: {error}"
        ) from error


def _prefixed(weights: Weights) -> Weights:
    """With the name of the body before its weights, which a bare model's file leaves out."""
    if any(name.startswith((BODY, HEAD)) for name in weights):
        return weights
    return {name if name == SCORE else BODY + name: x for name, x in weights.items()}
