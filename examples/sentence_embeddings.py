"""Sentence embeddings with sentence-transformers on an accelerated XLNet.

    python examples/sentence_embeddings.py [--model xlnet/xlnet-base-cased]

sentence-transformers knows no pooling for XLNet, so the modules are named here. XLNet pads on the
left and has its <cls> at the end: mean pooling looks at the mask and so is right, "lasttoken" takes
the <cls>, and "cls" would take padding.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_model import TEXTS, tiny_model

import xlnet_fast


def main() -> None:
    """Embed with our code and with Hugging Face's, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint folder or Hub id; default: a tiny one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        transformer = Transformer(options.model or tiny_model(Path(folder)))
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[transformer, pooling])
    xlnet_fast.accelerate(model)
    assert model.tokenizer.padding_side == "left"

    ours = model.encode(TEXTS, convert_to_tensor=True)
    print(f"{len(ours)} embeddings of {ours.shape[1]} numbers")
    alone = torch.stack([model.encode(text, convert_to_tensor=True) for text in TEXTS])
    torch.testing.assert_close(alone, ours, rtol=1e-4, atol=1e-4)  # padding changes nothing
    assert torch.cdist(ours, ours).max() > 1e-3, "one embedding for all texts"
    xlnet_fast.restore(model)
    theirs = model.encode(TEXTS, convert_to_tensor=True)
    print(f"Hugging Face's and ours: {(theirs - ours).abs().max():.1e} apart")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main()
