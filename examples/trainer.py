"""Fine-tune an accelerated XLNet with Hugging Face's Trainer.

    python examples/trainer.py [--model xlnet/xlnet-base-cased]

The one line that is not Hugging Face's is marked. What is saved loads without this package.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from tiny_model import LABELS, TEXTS, tiny_model
from transformers import (
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    XLNetForSequenceClassification,
    XLNetTokenizer,
)

import xlnet_fast


def train(name: str, output: Path) -> tuple[float, float]:
    """Fine-tune on `TEXTS`, save to `output`, and return the loss before and after."""
    tokenizer = XLNetTokenizer.from_pretrained(name, padding_side="left")  # <cls> is the last token
    model = XLNetForSequenceClassification.from_pretrained(name, num_labels=2)
    xlnet_fast.accelerate(model)  # <- this line
    rows = [{**tokenizer(text), "labels": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(output), num_train_epochs=15, per_device_train_batch_size=6,
            learning_rate=3e-3 if model.config.d_model < 100 else 3e-5, seed=0,
            save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(output)
    return before, trainer.evaluate()["eval_loss"]


def logits(name: str, *, accelerate: bool) -> torch.Tensor:
    """Return what a saved model says of `TEXTS`."""
    tokenizer = XLNetTokenizer.from_pretrained(name)
    model = XLNetForSequenceClassification.from_pretrained(name).eval()
    if accelerate:
        xlnet_fast.accelerate(model)
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def main() -> None:
    """Train, and hold the result against plain Hugging Face."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint folder or Hub id; default: a tiny one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "trained")
        before, after = train(options.model or tiny_model(Path(folder, "tiny")), output)
        print(f"loss {before:.3f} before, {after:.3f} after")
        assert after < 0.5 * before, "it has not learned"
        plain, fast = (logits(str(output), accelerate=which) for which in (False, True))
        print(f"saved model, plain Hugging Face and ours: {(plain - fast).abs().max():.1e} apart")
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main()
