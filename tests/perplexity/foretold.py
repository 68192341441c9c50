"""What the tests of `perplexity` share: readers and their losses, files, and an XLNet's oracle."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import XLNetLMHeadModel

from xlnet_fast.checkpoint import load_config
from xlnet_fast.perplexity import PerplexityOptions

TOKENS = 23


def text_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    return path


def options(folder: Path, text: Path | str = "unread", **changes) -> PerplexityOptions:
    return PerplexityOptions(model=str(folder), text=str(text), **changes)


def reader_of(kind, folder: Path, **changes):
    config = load_config(str(folder), only_xlnet=False)
    given = options(folder, **changes)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[given.dtype]
    return kind(given, str(folder), config, torch.device("cpu"), dtype)


def random_ids(vocabulary: int, tokens: int = TOKENS, batch: int = 1) -> torch.Tensor:
    return torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(3))


def read_losses(reader, ids: torch.Tensor) -> torch.Tensor:
    """(B, T - 1), whatever the segments were."""
    return torch.cat(list(reader.losses(ids)), 1)


@torch.no_grad()
def one_by_one(model, ids: torch.Tensor, mems=None) -> torch.Tensor:
    """(T,) or (T - 1,) losses by Hugging Face's model: the whole text again for every token.

    The token itself is hidden from all, and with it what it is; with ``mems`` the first counts too.
    """
    losses = []
    for place in range(mems is None, ids.shape[1]):
        length = place + 1
        seen = ids[:, :length].clone()
        seen[:, place] = 0
        perm_mask = torch.ones(length, length).triu()[None].to(model.dtype)
        mapping = torch.zeros(1, 1, length, dtype=model.dtype)
        mapping[:, 0, place] = 1
        logits = model(
            seen, mems=mems, perm_mask=perm_mask, target_mapping=mapping, use_mems=True
        ).logits
        losses.append(-logits[0, 0].log_softmax(-1)[ids[0, place]])
    return torch.stack(losses)


def plain_xlnet(folder: Path, dtype: torch.dtype):
    """Hugging Face's model in a dtype, its table of positions too, which would stay in fp32."""
    model = XLNetLMHeadModel.from_pretrained(folder).eval().to(dtype)
    encode = model.transformer.relative_positional_encoding
    model.transformer.relative_positional_encoding = lambda *a, **k: encode(*a, **k).to(dtype)
    return model
