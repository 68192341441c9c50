"""Fine-tune an accelerated XLNet on the TPUs of this machine, or on its CPU where it has none.

    pip install 'xlnet-fast[tpu]'
    python examples/train_tpu.py [--model xlnet/xlnet-base-cased]

JAX differentiates the model that torchax shows it; each TPU takes a share of the batch. What is
saved loads without this package. On a TPU this was compiled, never run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import torch
import torchax
from tiny_model import LABELS, TEXTS, tiny_model
from transformers import XLNetForSequenceClassification, XLNetTokenizer

import xlnet_fast
from xlnet_fast import tpu

Arrays = dict[str, jax.Array]


def batch(tokenizer: XLNetTokenizer, devices: int) -> dict[str, torch.Tensor]:
    """`TEXTS` at one length, as many as can be shared out evenly."""
    count = len(TEXTS) // devices * devices
    inputs = tokenizer(TEXTS[:count], padding="max_length", max_length=32, return_tensors="pt")
    return {**inputs, "labels": torch.tensor(LABELS[:count])}


def train(name: str, output: Path, steps: int) -> tuple[float, float]:
    """Fine-tune, save to `output`, and return the loss before and after."""
    tokenizer = XLNetTokenizer.from_pretrained(name, padding_side="left")  # <cls> is the last token
    model = XLNetForSequenceClassification.from_pretrained(name, num_labels=2).train()
    xlnet_fast.accelerate(model)
    tpu.register(interpret=jax.default_backend() == "cpu")
    rate = 0.1 if model.config.d_model < 100 else 1e-3

    def loss(parameters: Any, inputs: Any) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (), inputs).loss

    gradients_of = tpu.data_parallel(loss)

    @jax.jit
    def step(parameters: Arrays, inputs: Arrays, key: jax.Array) -> tuple[jax.Array, Arrays]:
        value, gradients = gradients_of(parameters, inputs, key)
        return value, jax.tree.map(lambda x, g: x - rate * g, parameters, gradients)

    environment = torchax.default_env()
    parameters = environment.t2j_copy({n: x.detach() for n, x in model.named_parameters()})
    inputs = environment.t2j_copy(batch(tokenizer, jax.device_count()))
    losses = []
    for key in jax.random.split(jax.random.key(0), steps):
        value, parameters = step(parameters, inputs, key)
        losses.append(float(value))
    model.load_state_dict(environment.j2t_copy(parameters))
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return losses[0], losses[-1]


def main() -> None:
    """Train, and let plain Hugging Face classify the texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint folder or Hub id; default: a tiny one")
    parser.add_argument("--steps", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "trained")
        name = options.model or tiny_model(Path(folder, "tiny"))
        before, after = train(name, output, options.steps)
        print(f"loss {before:.3f} before, {after:.3f} after, on {jax.devices()}")
        assert after < 0.5 * before, "it has not learned"
        model = XLNetForSequenceClassification.from_pretrained(output).eval()
        with torch.no_grad():
            found = model(**batch(XLNetTokenizer.from_pretrained(output), 1)).logits.argmax(1)
        right = (found == torch.tensor(LABELS)).float().mean()
        print(f"saved model, under plain Hugging Face: {right:.0%} right")
        assert right > 0.9, "what was saved is not what was trained"


if __name__ == "__main__":
    main()
