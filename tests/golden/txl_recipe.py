"""What both sides of the recorded Transformer-XL values agree on: options, weights, inputs, runs.

``make_txl_values.py`` runs it with the last Hugging Face classes there were, the tests with ours.
Weights and ids come from SHAKE-256 of their names: no file holds them, and no release of numpy or
torch changes them. transformers is not imported here: the two sides have different ones.
"""

from __future__ import annotations

import hashlib
import math
import re
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

VOCABULARY = 60
LENGTHS = (10, 10, 5)
"""Tokens of the three segments of a text."""
STD = 0.2

BASE = {
    "vocab_size": VOCABULARY,
    "cutoffs": [20, 40],
    "d_model": 32,
    "d_embed": 32,
    "n_head": 4,
    "d_head": 8,
    "d_inner": 40,
    "n_layer": 2,
    "mem_len": 12,
    "dropout": 0.0,
}

SETS: dict[str, dict[str, Any]] = {
    "default": {},
    "same_length False": {"same_length": False},
    "pre_lnorm": {"pre_lnorm": True},
    "untie_r False": {"untie_r": False},
    "clamp_len 7": {"clamp_len": 7},
    "clamp_len -1": {"clamp_len": -1},
    "mem_len 5": {"mem_len": 5},
    "mem_len 0": {"mem_len": 0, "same_length": False},
    "mem_len 40": {"mem_len": 40},
    "div_val 1": {"div_val": 1},
    "div_val 2": {"div_val": 2},
    "d_embed 24, div_val 1": {"d_embed": 24, "div_val": 1},
    "d_embed 24, div_val 2": {"d_embed": 24, "div_val": 2},
    "no cutoffs": {"cutoffs": [], "div_val": 1},
    "no cutoffs, div_val 4": {"cutoffs": []},
    "no cutoffs, d_embed 24": {"cutoffs": [], "d_embed": 24, "div_val": 1},
    "one cutoff": {"cutoffs": [30], "div_val": 2},
    "own projections": {"proj_share_all_but_first": False, "div_val": 2},
    "own projections, d_embed 24, div_val 1": {
        "proj_share_all_but_first": False, "d_embed": 24, "div_val": 1,
    },
    "own output weights": {"tie_word_embeddings": False, "div_val": 2},
    "own output weights, no cutoffs": {
        "tie_word_embeddings": False, "cutoffs": [], "d_embed": 24, "div_val": 1,
    },
    "odd heads": {"n_head": 3, "d_head": 6, "n_layer": 3},
    "layer_norm_epsilon": {"layer_norm_epsilon": 0.1},
    "pre_lnorm, same_length False, clamp_len 7": {
        "pre_lnorm": True, "same_length": False, "clamp_len": 7, "div_val": 2,
    },
    "untie_r False, mem_len 5, d_embed 24": {
        "untie_r": False, "mem_len": 5, "d_embed": 24, "div_val": 1,
    },
    "pre_lnorm, untie_r False, no cutoffs": {
        "pre_lnorm": True, "untie_r": False, "cutoffs": [], "div_val": 1, "n_layer": 3,
    },
    "pre_lnorm, mem_len 0": {"pre_lnorm": True, "mem_len": 0, "same_length": False},
}  # fmt: skip
"""Configurations, as what they change of ``BASE``; the rest is Hugging Face's default."""

BATCHES = {"default": 3, "div_val 1": 1, "no cutoffs": 1, "odd heads": 3}
"""Texts of a set, 2 elsewhere."""

ATTENTIONS = ("default", "odd heads", "pre_lnorm, same_length False, clamp_len 7")
"""Sets of which the attention's probabilities are recorded."""

TEXTS_FOR_ERRORS = 3
"""Runs whose largest errors are compared, so that no single element decides by luck."""
PRECISIONS: dict[str, tuple[str, ...]] = {
    "default": ("float32", "bfloat16", "float16"),
    "pre_lnorm": ("float32", "bfloat16", "float16"),
    "div_val 1": ("float32", "bfloat16"),
    "no cutoffs, d_embed 24": ("float32", "float16"),
    "same_length False": ("float32",),
    "clamp_len -1": ("float32",),
    "odd heads": ("float32",),
    "untie_r False, mem_len 5, d_embed 24": ("float32",),
}
"""Sets and dtypes in which Hugging Face's own errors are recorded."""

GENERATIONS: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "greedy": ("default", (2, 7), {}),
    "greedy, one text": ("div_val 1", (1, 4), {}),
    "greedy, long prompt": ("default", (2, 19), {}),
    "greedy, mem_len 5": ("mem_len 5", (2, 7), {}),
    "greedy, mem_len 0": ("mem_len 0", (2, 7), {}),
    "greedy, same_length False": ("same_length False", (3, 5), {}),
    "greedy, pre_lnorm": ("pre_lnorm, untie_r False, no cutoffs", (2, 3), {}),
    "greedy, end of text": ("default", (2, 7), {"eos_token_id": list(range(0, 60, 7))}),
    "beams": ("default", (2, 7), {"num_beams": 3}),
    "beams, long prompt": ("mem_len 5", (1, 14), {"num_beams": 3}),
    "beams, mem_len 0": ("mem_len 0", (2, 6), {"num_beams": 3}),
    "beams, all of them": ("no cutoffs", (2, 6), {"num_beams": 3, "num_return_sequences": 3}),
    "greedy, as it comes": ("div_val 1", (2, 5), {"no_repeat_ngram_size": 0}),
    "penalties": ("clamp_len 7", (2, 7), {"no_repeat_ngram_size": 1, "repetition_penalty": 1.3}),
}
"""Name to set, shape of the prompt, and options of ``generate``."""
PAD = VOCABULARY - 1
WRITING = {"max_new_tokens": 18, "do_sample": False, "no_repeat_ngram_size": 2}
"""Options unless a case has others. A word is its own best successor where weights are random and
tied: no pair of words may come again."""

Results = dict[str, Tensor]


def config_of(name: str) -> dict[str, Any]:
    """Arguments of ``TransfoXLConfig``; fresh, for Hugging Face's classes change some lists."""
    merged = {**BASE, **SETS[name]}
    return {key: list(x) if isinstance(x, list) else x for key, x in merged.items()}


def batch_of(name: str) -> int:
    return BATCHES.get(name, 2)


# --- numbers from names ------------------------------------------------------------------------


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1), float64, that depend on the name alone."""
    raw = np.frombuffer(hashlib.shake_256(name.encode()).digest(8 * math.prod(shape)), "<u8")
    return (raw >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-52 - 1.0


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 weight of standard deviation ``STD`` around 0, or 1 for a layer norm's."""
    spread = uniform(name, shape) * (STD * math.sqrt(3.0))
    return (spread + name.endswith("layer_norm.weight")).astype(np.float32)


def ids(name: str, batch: int, length: int, vocabulary: int = VOCABULARY) -> Tensor:
    """(B, L) int64."""
    numbers = (uniform(name, (batch, length)) + 1.0) * (vocabulary / 2)
    return torch.from_numpy(numbers.astype(np.int64))


def labels(name: str, batch: int, length: int) -> Tensor:
    """(B, L) int64, three tenths of them -100."""
    ignored = torch.from_numpy(uniform(f"ignored {name}", (batch, length)) > 0.4)
    return ids(name, batch, length).masked_fill(ignored, -100)


@cache
def directions(size: int, count: int) -> Tensor:
    """(size, count) float64, fixed and without a pattern."""
    return torch.from_numpy(uniform(f"directions of {size}", (size, count)))


def digest(x: Tensor, count: int = 2) -> Tensor:
    """A tensor's rows along ``count`` fixed directions: (..., n) -> (..., count), float64.

    A row that is wrong anywhere is wrong along a direction that was chosen without regard to it.
    """
    return x.detach().double() @ directions(x.shape[-1], count)


# --- weights -----------------------------------------------------------------------------------


def shared_names(model: nn.Module) -> list[list[str]]:
    """Names of each parameter, sorted; more than one where it is tied."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return sorted(sorted(names) for names in found.values())


def away_from_kinks(name: str, value: np.ndarray) -> np.ndarray:
    """Weights with which no unit of a feed-forward is near the ReLU's corner.

    A unit that rounding carries across changes gradients by more than all rounding besides, and
    whether one does is luck.
    """
    if name.endswith("CoreNet.0.weight"):
        return value / 4
    if name.endswith("CoreNet.0.bias"):
        return value + np.copysign(np.float32(1.5), value)
    return value


def fill(
    model: Any,
    dtype: torch.dtype = torch.float64,
    rounded_to: torch.dtype = torch.float32,
    kinks: bool = True,
) -> Any:
    """The model in ``dtype`` and eval mode, each weight made of the first of its sorted names.

    Args:
        rounded_to: dtype that holds the weights exactly, so that runs in several dtypes agree.
        kinks: else :func:`away_from_kinks`.
    """
    model = model.to(dtype).eval()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for names in shared_names(model):
        parameter = parameters[names[0]]
        value = weight(names[0], tuple(parameter.shape))
        value = value if kinks else away_from_kinks(names[0], value)
        parameter.data.copy_(torch.from_numpy(value).to(rounded_to))
    return model


# --- runs --------------------------------------------------------------------------------------


def run(model: Any, name: str, text: str = "") -> Results:
    """Three segments of a text, with labels and without, and the gradients of both.

    Args:
        model: with a language modelling head, its losses in the order of the tokens.
        name: of a set. text: any word, another one of another text.

    Returns:
        scores (B, 25, V); losses (B, 22); loss (3,); hidden (layers + 1, B, 25, H); mems
        (3, layers, M, B, H), absent where the model keeps none; for each parameter `d loss NAME`,
        of the sum of the losses, and `d scores NAME`, of the scores along a fixed direction;
        neither under ``torch.no_grad()``.
    """
    batch, mems, memories = batch_of(name), None, []
    parts: dict[str, list[Tensor]] = {"scores": [], "losses": [], "loss": [], "hidden": []}
    total_loss = total_score = torch.zeros((), dtype=torch.float64)
    for number, length in enumerate(LENGTHS):
        given = ids(f"{name} ids{text} {number}", batch, length)
        targets = labels(f"{name} labels{text} {number}", batch, length)
        plain = model(given, mems=mems, output_hidden_states=True)
        scored = model(given, mems=mems, labels=targets)
        parts["scores"].append(plain.prediction_scores)
        parts["losses"].append(scored.losses)
        parts["loss"].append(scored.loss[None])
        parts["hidden"].append(torch.stack(plain.hidden_states))
        total_loss = total_loss + scored.loss
        toward = directions(plain.prediction_scores.shape[-1], 1).to(plain.prediction_scores)
        total_score = total_score + (plain.prediction_scores @ toward).sum(dtype=torch.float64)
        mems = scored.mems
        if mems:
            memories.append(torch.stack(list(mems)))
    axes = {"loss": 0, "hidden": 2}
    results = {part: torch.cat(x, axes.get(part, 1)).detach() for part, x in parts.items()}
    if memories:
        results["mems"] = torch.stack(memories)
    if not torch.is_grad_enabled():
        return results
    results |= gradients(model, "d loss", total_loss)
    return results | gradients(model, "d scores", total_score)


def gradients(model: nn.Module, word: str, total: Tensor) -> Results:
    """The gradient of every parameter, by the first of its sorted names; zero where it has none."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = [group[0] for group in shared_names(model)]
    found = torch.autograd.grad(total, [parameters[name] for name in names], allow_unused=True)
    return {
        f"{word} {name}": torch.zeros_like(parameters[name]) if x is None else x
        for name, x in zip(names, found, strict=True)
    }


def digests(results: Results) -> Results:
    """What is recorded of a run: losses whole, rows of the rest, all gradients of a kind as one."""
    recorded = {}
    for name in ("scores", "hidden", "mems"):
        if name in results:
            recorded[name] = digest(results[name])
    recorded |= {name: results[name].double() for name in ("losses", "loss")}
    for word in ("d loss", "d scores"):
        flat = [x.flatten() for name, x in sorted(results.items()) if name.startswith(word)]
        if flat:
            recorded[word] = torch.stack([digest(x, 4) for x in flat])
    return recorded


def kind_of(name: str) -> str:
    """A parameter's name without its layer: what is alike in all layers is judged together."""
    return re.sub(r"\.layers\.\d+\.", ".layers.*.", name)


def texts(model: Any, name: str) -> list[Results]:
    """Runs on several texts."""
    return [run(model, name, f" of text {number}") for number in range(TEXTS_FOR_ERRORS)]


def largest(runs: list[Results]) -> dict[str, float]:
    """The largest element of each kind of tensor."""
    found: dict[str, float] = {}
    for results in runs:
        for name, x in results.items():
            found[kind_of(name)] = max(float(x.abs().max()), found.get(kind_of(name), 0.0))
    return found


def errors(runs: list[Results], exact: list[Results]) -> dict[str, float]:
    """The largest error of each kind of tensor."""
    return largest([
        {name: x.double() - right[name] for name, x in results.items()}
        for results, right in zip(runs, exact, strict=True)
    ])  # fmt: skip


def run_attentions(model: Any) -> Results:
    """Probabilities and scores of a text's first and second segment, also with heads masked."""
    first, second = (ids(f"attentions {i}", 2, length) for i, length in enumerate((6, 5)))
    heads, layers = model.config.n_head, model.config.n_layer
    masks = {
        "plain": None,
        "heads": torch.tensor([0.5, 0.0, 1.0, 2.0])[:heads],
        "heads of layers": torch.from_numpy(uniform("head_mask", (layers, heads)) > 0).float(),
    }
    with torch.no_grad():
        start = model(first, output_attentions=True)
        mems, results = start.mems, {"first attentions": torch.stack(start.attentions)}
        for name, mask in masks.items():
            out = model(second, mems=mems, head_mask=mask, output_attentions=True)
            results[f"{name} attentions"] = torch.stack(out.attentions)
            results[f"{name} scores"] = out.prediction_scores
    return results


def run_embedded(model: Any) -> Results:
    """Scores of ``inputs_embeds``, whose scale is the caller's affair."""
    embedded = torch.from_numpy(uniform("inputs_embeds", (2, 7, BASE["d_model"])))
    with torch.no_grad():
        return {"embedded": model(inputs_embeds=embedded).prediction_scores}


def run_resized(model: Any, tokens: int) -> Results:
    """Scores after ``resize_token_embeddings``; the model is changed."""
    model.resize_token_embeddings(tokens)
    with torch.no_grad():
        return {"resized": model(ids("resized", 2, 8, tokens)).prediction_scores}


PADDING = 3
TEXTS = [[7, 8, 9, 10, 11, 12], [13, 14, 15, 3, 3, 3], [3, 3, 16, 17, 18, 19], [21, 3, 3, 3, 3, 3]]
CLASSIFICATIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "classes": ({"num_labels": 3, "pad_token_id": PADDING}, [0, 2, 1, 1]),
    "numbers": ({"num_labels": 1, "pad_token_id": PADDING}, [0.5, -1.0, 2.0, 0.0]),
    "several classes": ({"num_labels": 2, "pad_token_id": PADDING}, [[0.0, 1.0]] * 4),
    "one text": ({"num_labels": 3}, [2]),
}
"""Heads of sequence classification, with labels for as many of ``TEXTS``."""


def run_classification(model: Any, name: str) -> Results:
    """Logits of the last token that is none of padding, and the loss."""
    wanted = torch.tensor(CLASSIFICATIONS[name][1])
    if wanted.is_floating_point():
        wanted = wanted.to(next(model.parameters()).dtype)
    with torch.no_grad():
        out = model(torch.tensor(TEXTS[: len(wanted)]), labels=wanted)
    return {"logits": out.logits, "loss": out.loss[None]}


def generate(model: Any, name: str) -> Tensor:
    """Token ids, without a random choice."""
    _, _, options = GENERATIONS[name]
    model.generation_config.eos_token_id = options.get("eos_token_id")
    model.generation_config.pad_token_id = PAD
    rest = {key: x for key, x in options.items() if key != "eos_token_id"}
    found: Tensor = model.generate(prompt_of(name), **{**WRITING, **rest})
    return found


def prompt_of(name: str) -> Tensor:
    """Without the word for padding, which newer releases take out of a prompt."""
    return ids(f"prompt of {name}", *GENERATIONS[name][1], PAD)


# --- order of fields ---------------------------------------------------------------------------


def tuple_calls() -> dict[str, dict[str, Any]]:
    """Arguments of the calls whose tuples are compared."""
    everything = {"output_hidden_states": True, "output_attentions": True}
    targets = {"labels": labels("tuples", 2, 6)}
    return {"plain": {}, "everything": everything, "labels": targets | everything}


def same(a: Any, b: Any) -> bool:
    """Whether two fields of an output are the same, all their tensors included."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if a is None or b is None:
        return a is b
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def fields(model: Any, given: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Keys of the output, in order, and which of them the fields of the tuple are, in order."""
    tokens = ids("tuples ids", 2, 6)
    with torch.no_grad():
        by_name = model(tokens, **given, return_dict=True)
        in_order = model(tokens, **given, return_dict=False)
    names = []
    for field in in_order:
        names.append(next(key for key, x in by_name.items() if same(x, field)))
    return list(by_name), names
