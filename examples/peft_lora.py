"""LoRA on an accelerated XLNet with PEFT.

    python examples/peft_lora.py [--model xlnet/xlnet-base-cased]

Hugging Face keeps q, k, v and o as bare parameters of three dimensions, which PEFT does not adapt
by low rank. `linear_attention` gives them as `nn.Linear`; what is merged is saved as Hugging
Face's own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tiny_model import LABELS, TEXTS, tiny_model
from transformers import XLNetForSequenceClassification, XLNetTokenizer

import xlnet_fast


def main() -> None:
    """Adapt, merge, and hold the merged model against plain Hugging Face."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint folder or Hub id; default: a tiny one")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        name = options.model or tiny_model(Path(folder))
        # The class is read off the last token, <cls>.
        tokenizer = XLNetTokenizer.from_pretrained(name, padding_side="left")
        model = XLNetForSequenceClassification.from_pretrained(name, num_labels=2)
    frozen = model.transformer.layer[0].rel_attn.q.detach().clone()
    xlnet_fast.linear_attention(xlnet_fast.accelerate(model))  # <- before PEFT and the optimizer
    lora = LoraConfig(
        r=8,
        target_modules=["q", "k", "v", "o"],  # "ff.layer_1" and "ff.layer_2" are as welcome
        modules_to_save=["sequence_summary", "logits_proj"],
    )
    adapted = get_peft_model(model, lora)
    adapted.print_trainable_parameters()
    low_rank = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    config = model.config
    assert low_rank == config.n_layer * 4 * lora.r * (
        config.d_model + config.n_head * config.d_head
    )

    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    labels = torch.tensor(LABELS)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2 if model.config.d_model < 100 else 3e-4)
    losses = []
    for _ in range(30):
        loss = adapted(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    assert losses[-1] < 0.5 * losses[0], "it has not learned"

    adapted.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        before = adapted(**inputs).logits
        merged = adapted.merge_and_unload()
        after = merged(**inputs).logits
        merged.save_pretrained(folder)
        plain = XLNetForSequenceClassification.from_pretrained(folder).eval()
        theirs = plain(**inputs).logits
    assert not torch.equal(plain.transformer.layer[0].rel_attn.q, frozen)
    print(
        f"merged, in plain Hugging Face: {(theirs - before).abs().max():.1e} from the adapted one"
    )
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(theirs, before, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main()
