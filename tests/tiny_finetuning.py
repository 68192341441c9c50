"""A tiny model, a tokenizer and toy data that a tiny model can learn, for the fine-tuning tests."""

from __future__ import annotations

import csv
import functools
import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import XLNetConfig, XLNetLMHeadModel, XLNetTokenizer

from xlnet_fast.text import builtin_text, train_tokenizer
from xlnet_fast.train.finetune import FinetuneOptions

SHAPE = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "initializer_range": 0.1}
WORDS = ("the", "value", "of", "a", "class", "is", "an", "object", "with", "function", "this")
NAMES = ("integer", "string", "module", "tuple")


@functools.cache
def tokenizer_source() -> str:
    """About 20 kB of the built-in text."""
    return builtin_text()[:20000]


def checkpoint(folder: Path, *, dropout: float = 0.0, **shape: Any) -> Path:
    """A random XLNetLMHeadModel with its tokenizer, as the pretraining leaves it."""
    train_tokenizer(tokenizer_source(), 300, folder)
    size = len(XLNetTokenizer.from_pretrained(folder))
    torch.manual_seed(0)
    settings = {**SHAPE, "vocab_size": size, "dropout": dropout, "summary_last_dropout": dropout}
    XLNetLMHeadModel(XLNetConfig(**{**settings, **shape})).save_pretrained(folder)
    return folder


def sentence(generator: random.Random, length: int = 6) -> list[str]:
    """Words without a meaning."""
    return [generator.choice(WORDS) for _ in range(length)]


def text_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """A text has the label of the last word."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        label = ("good", "bad")[i % 2]
        word = {"good": "yield", "bad": "import"}[label]
        rows.append({"text": " ".join([*sentence(generator), word]), "label": label})
    return rows


def token_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Names are entities of two words, all else is none."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens, tags = sentence(generator), ["O"] * 6
        at = generator.randrange(5)
        tokens[at : at + 2] = ["import", "yield"]
        tags[at : at + 2] = ["B-NAME", "I-NAME"]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def choice_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The choice with "yield" is right."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        endings = [" ".join([*sentence(generator, 3), word]) for word in ("import", "import")]
        endings[i % 2] = " ".join([*sentence(generator, 3), "yield"])
        context, question = " ".join(sentence(generator)), "which one"
        rows.append({"context": context, "question": question, "choices": endings, "label": i % 2})
    return rows


def question_rows(
    count: int, seed: int = 0, *, without_answer: bool = False
) -> list[dict[str, Any]]:
    """The answer is the one name in the context; every third context may have none."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        words, answers = sentence(generator, 8), {"text": [], "answer_start": []}
        if not (without_answer and i % 3 == 0):
            at = generator.randrange(8)
            words[at] = generator.choice(("yield", "import"))
            start = len(" ".join(words[:at])) + (at > 0)
            answers = {"text": [words[at]], "answer_start": [start]}
        rows.append(
            {
                "id": f"q{i}",
                "question": "which name",
                "context": " ".join(words),
                "answers": answers,
            }
        )
    return rows


ROWS = {
    "text-classification": text_rows,
    "token-classification": token_rows,
    "multiple-choice": choice_rows,
    "question-answering": question_rows,
}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    """The keys of the first row are the header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """What ``write_jsonl`` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def options(task: str, model: Path, folder: Path, **changes: Any) -> FinetuneOptions:
    """A run of some seconds on toy data, which are written into the folder."""
    rows = ROWS[task]
    settings: dict[str, Any] = {
        "task": task,
        "model": str(model),
        "train": str(write_jsonl(folder / "train.jsonl", rows(64))),
        "eval": str(write_jsonl(folder / "eval.jsonl", rows(22, seed=1))),
        "output": folder / "out",
        "max_length": 48,
        "batch_size": 8,
        "epochs": 6,
        "learning_rate": 3e-3,
        "log_every": 4,
        "layerwise_decay": 0.9,
    }
    if task == "question-answering":
        settings["stride"] = 8
    return FinetuneOptions(**{**settings, **changes})


def short(model: Path, folder: Path, **changes: Any) -> FinetuneOptions:
    """A run of a few steps on texts."""
    return options("text-classification", model, folder, **{"steps": 6, "eval_every": 3, **changes})
