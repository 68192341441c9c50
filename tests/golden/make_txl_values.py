"""Record what Hugging Face's Transformer-XL computes, in the last release that has it.

Once, in an environment of its own:

    python3 -m venv old
    old/bin/pip install torch==2.13.0 transformers==4.37.2 "numpy<2" sacremoses
    old/bin/python tests/golden/make_txl_values.py

writes `txl_values.safetensors`, `txl_values.json` and the checkpoints in `txl_checkpoints/`, all in
the folder of this script; `--check` writes nothing and exits with 1 where what is there differs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import txl_recipe as recipe
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    TransfoXLConfig,
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
)

HERE = Path(__file__).resolve().parent
RELEASE = "4.37.2"
COMMAND = "python tests/golden/make_txl_values.py"
PACKAGES = 'torch==2.13.0 transformers==4.37.2 "numpy<2" sacremoses'
F64 = torch.float64
SAME = 1e-12
"""Of `--check`: largest difference, relative to a tensor's largest element (or 1)."""

SAVED: dict[str, dict[str, Any]] = {
    "bin": {"safe": False},
    "safetensors": {"safe": True},
    "untied_r_false_bin": {"safe": False, "untie_r": False},
    "untied_r_false_safetensors": {"safe": True, "untie_r": False},
    "div_val_1": {"safe": True, "div_val": 1, "d_embed": 6},
    "bfloat16": {"safe": True, "dtype": torch.bfloat16},
}
"""Checkpoints: how they are saved, and what they change of `SMALL`."""
SMALL = {
    "vocab_size": 30, "cutoffs": [10, 20], "d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 4,
    "d_inner": 12, "n_layer": 2, "mem_len": 6, "div_val": 2, "dropout": 0.0,
}  # fmt: skip


@contextlib.contextmanager
def scores_stay_float64() -> Iterator[None]:
    """Let Hugging Face's attention run in float64.

    It takes masked scores to float32, where the value that hides, float64's smallest, overflows.
    """
    cast = torch.Tensor.float

    def keep(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x if x.dtype == F64 else cast(x, *args, **kwargs)

    torch.Tensor.float = keep  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = cast  # type: ignore[method-assign]


def language_model(name: str, **more: Any) -> Any:
    """Hugging Face's model of a set, whose losses come in the order of the tokens."""
    model = TransfoXLLMHeadModel(TransfoXLConfig(**recipe.config_of(name), **more))
    model.crit.keep_order = True
    return model


def record_set(name: str, values: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Digests in float64 and, of some, Hugging Face's own errors in other dtypes."""
    model = recipe.fill(language_model(name))
    facts["shared"][name] = [names for names in recipe.shared_names(model) if len(names) > 1]
    exact = recipe.run(model, name)
    check_order_of_losses(model, name)
    values |= {f"{name}/{key}": x for key, x in recipe.digests(exact).items()}
    if name == "default":
        values[f"{name}/whole scores"] = exact["scores"]
    for word in recipe.PRECISIONS.get(name, ()):
        dtype = getattr(torch, word)
        # Fresh ones: a model that was in a half keeps its table of frequencies rounded.
        exact, eager = (
            recipe.texts(recipe.fill(language_model(name), working, dtype, kinks=False), name)
            for working in (F64, dtype)
        )
        found = recipe.errors(eager, exact)
        values[f"{name}/errors {word}"] = torch.tensor([found[key] for key in sorted(found)])


def check_order_of_losses(model: Any, name: str) -> None:
    """Without `keep_order` the same losses come cluster by cluster."""
    given, targets = recipe.ids("order", 2, 9), recipe.labels("order", 2, 9)
    with torch.no_grad():
        ordered = model(given, labels=targets.clone())
        model.crit.keep_order = False
        unordered = model(given, labels=targets.clone())
        model.crit.keep_order = True
    a, b = (x.losses.flatten().sort().values for x in (ordered, unordered))
    assert torch.equal(a, b), name
    scores = model(given).prediction_scores[:, :-1]
    wanted = targets[:, 1:]
    picked = -scores.gather(2, wanted.clamp(min=0)[..., None])[..., 0].masked_fill(wanted < 0, 0)
    assert torch.allclose(picked, ordered.losses, rtol=0, atol=1e-12), name


def record_rest(values: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Attentions, heads of classification, generation, tuples."""
    for name in recipe.ATTENTIONS:
        found = recipe.run_attentions(recipe.fill(language_model(name)))
        for key, x in found.items():
            whole = name == "default" and key == "plain attentions"
            values[f"attentions/{name}/{key}"] = x if whole else recipe.digest(x)
    model = recipe.fill(language_model("default"))
    values |= {f"inputs/{key}": recipe.digest(x) for key, x in recipe.run_embedded(model).items()}
    for name in ("default", "no cutoffs"):
        resized = recipe.run_resized(recipe.fill(language_model(name)), 50)
        values[f"resized/{name}"] = recipe.digest(resized["resized"])
    for name, (options, _) in recipe.CLASSIFICATIONS.items():
        config = TransfoXLConfig(**recipe.config_of("default"), **options)
        head = recipe.fill(TransfoXLForSequenceClassification(config))
        values |= {f"{name}/{key}": x for key, x in recipe.run_classification(head, name).items()}
        if name == "classes":
            facts["tuples"]["classification"] = recipe.fields(head, {})
    for name, (set_name, _, _) in recipe.GENERATIONS.items():
        found = recipe.generate(recipe.fill(language_model(set_name)), name)
        values[f"generated/{name}"] = found.to(torch.int16)
    for compatible in (False, True):
        model = recipe.fill(language_model("default", trainer_compatible=compatible))
        facts["tuples"][f"trainer_compatible {compatible}"] = {
            key: recipe.fields(model, given) for key, given in recipe.tuple_calls().items()
        }
    facts["tuples"]["model"] = recipe.fields(
        model.transformer, {"output_hidden_states": True, "output_attentions": True}
    )


def record_checkpoints(folder: Path, values: dict[str, Tensor]) -> None:
    """Save small models the ways that Hugging Face could, and their scores."""
    for name, options in SAVED.items():
        options = copy.deepcopy(options)
        safe, dtype = options.pop("safe"), options.pop("dtype", torch.float32)
        model = TransfoXLLMHeadModel(TransfoXLConfig(**{**copy.deepcopy(SMALL), **options}))
        recipe.fill(model, dtype, dtype).save_pretrained(folder / name, safe_serialization=safe)
        loaded = TransfoXLLMHeadModel.from_pretrained(folder / name).double().eval()
        # Of a file in bfloat16 it would else take the frequencies, rounded to three digits.
        fresh = TransfoXLLMHeadModel(loaded.config).transformer.pos_emb.inv_freq
        loaded.transformer.pos_emb.inv_freq.copy_(fresh)
        with torch.no_grad():
            values[f"checkpoints/{name}"] = loaded(recipe.ids("checkpoint", 2, 9, 30)).logits


def defaults() -> dict[str, Any]:
    """Arguments of the configuration and what they are unless given."""
    parameters = inspect.signature(TransfoXLConfig).parameters.values()
    return {x.name: x.default for x in parameters if x.default is not inspect.Parameter.empty}


def record(checkpoints: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything: tensors by name, and what is no tensor."""
    values: dict[str, Tensor] = {}
    facts: dict[str, Any] = {
        "command": COMMAND,
        "packages": PACKAGES,
        "versions": {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "base": recipe.BASE,
        "sets": recipe.SETS,
        "defaults": defaults(),
        "shared": {},
        "tuples": {},
    }
    with scores_stay_float64():
        for name in recipe.SETS:
            record_set(name, values, facts)
        record_rest(values, facts)
        record_checkpoints(checkpoints, values)
    return {key: x.detach().contiguous() for key, x in values.items()}, facts


def differences(values: dict[str, Tensor], recorded: dict[str, Tensor]) -> list[str]:
    """What the file has otherwise; Hugging Face's own errors are a machine's affair."""
    found = sorted(values.keys() ^ recorded.keys())
    for key in sorted(values.keys() & recorded.keys()):
        a, b = values[key].double(), recorded[key].double()
        if "/errors " in key or (a.shape == b.shape and a.numel() == 0):
            continue
        if a.shape != b.shape or float((a - b).abs().max()) > SAME * max(1.0, float(b.abs().max())):
            found.append(key)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    if transformers.__version__ != RELEASE:
        print(f"This needs transformers {RELEASE}, not {transformers.__version__}: see its top.")
        return 2
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    file = HERE / "txl_values.safetensors"
    if check:
        with tempfile.TemporaryDirectory() as folder:
            values, _ = record(Path(folder))
        found = differences(values, load_file(file))
        print("\n".join(found) or f"{len(values)} tensors are what they were.")
        return int(bool(found))
    values, facts = record(HERE / "txl_checkpoints")
    save_file(values, file)
    (HERE / "txl_values.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{len(values)} tensors, {file.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
