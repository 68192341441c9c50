"""Classify texts with a pipeline of transformers on an accelerated XLNet.

python examples/pipeline.py [--model DIR_OR_HUB_ID]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tiny_model import TEXTS, tiny_model
from transformers import XLNetForSequenceClassification, XLNetTokenizer, pipeline

import xlnet_fast


def main() -> None:
    """Classify with our code and with Hugging Face's, and compare the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a classifier; default: a tiny one, untrained")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        name = options.model or tiny_model(Path(folder))
        model = xlnet_fast.accelerate(XLNetForSequenceClassification.from_pretrained(name))
        # A classifier has no use for memory, and a pipeline cannot take a batch of it apart.
        model.config.use_mems_eval = False
        # The class is read off the last token, <cls>.
        tokenizer = XLNetTokenizer.from_pretrained(name, padding_side="left")
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
        ours = classify(TEXTS, batch_size=6)
        xlnet_fast.restore(model)
        theirs = classify(TEXTS, batch_size=6)
    for text, label in zip(TEXTS[:3], ours, strict=False):
        print(f"{label['label']} {label['score']:.3f}  {text}")
    assert len({round(label["score"], 6) for label in ours}) > 1, "one score for all texts"
    for mine, other in zip(ours, theirs, strict=True):
        assert abs(mine["score"] - other["score"]) < 1e-4
        assert mine["label"] == other["label"] or abs(mine["score"] - 0.5) < 1e-4


if __name__ == "__main__":
    main()
