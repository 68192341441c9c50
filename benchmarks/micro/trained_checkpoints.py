"""Does `xlnet-fast check` pass on checkpoints that were trained? Trains some and checks each.

    python -m benchmarks micro.trained_checkpoints [--count 20] [--steps 300]

Training makes gradients that are small because large terms cancel, where equally good codes differ
by more than the plain rule of tolerance allows (docs/design.md, section 6). Every second checkpoint
is pretrained, every other one is fine-tuned from the one before; shapes, learning rates, seeds,
precisions and lengths of training differ. Each line is one checkpoint: its training, the tensors
that are inside by one rounding of every step only, and what failed. Exit code 1 where any failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlnet_fast.check import check_model
from xlnet_fast.checkpoint import load_model
from xlnet_fast.text import builtin_articles

SHAPES = (
    {"d_model": 64, "n_layer": 4, "n_head": 4, "d_inner": 128},
    {"d_model": 32, "n_layer": 6, "n_head": 4, "d_inner": 64},
    {"d_model": 48, "n_layer": 2, "n_head": 3, "d_inner": 96},
    {"d_model": 64, "n_layer": 3, "n_head": 8, "d_inner": 64},
    {"d_model": 16, "n_layer": 8, "n_head": 2, "d_inner": 32},
)
LEARNING_RATES = (2e-3, 5e-3, 1e-2)
CLASSES = 4


def pretrained(number: int, steps: int, output: Path) -> Path:
    """Pretrain on the built-in text; the folder of the model."""
    from xlnet_fast.train.pretraining import PretrainOptions, pretrain

    settings: dict[str, Any] = {
        "vocab_size": 300,
        "seq_len": (32, 64)[number % 2],
        "batch_size": 4,
        "steps": steps * (1 + number % 3),
        "learning_rate": LEARNING_RATES[number % len(LEARNING_RATES)],
        "precision": ("fp32", "fp32", "bf16")[number % 3],
        "bi_data": number % 4 == 3,
        "seed": number,
    }
    pretrain(PretrainOptions(output=output, **settings, **SHAPES[number % len(SHAPES)]))
    return output / "model"


def finetuned(number: int, steps: int, model: Path, output: Path) -> Path:
    """Fine-tune on telling from which article of the built-in text a paragraph is."""
    from xlnet_fast.train.finetune import FinetuneOptions, finetune

    articles = sorted(builtin_articles().items(), key=lambda item: -len(item[1]))[:CLASSES]
    rows = [{"text": text, "label": name} for name, texts in articles for text in texts[:40]]
    train = output.with_suffix(".jsonl")
    train.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    finetune(
        FinetuneOptions(
            task="text-classification",
            model=str(model),
            train=str(train),
            output=output,
            max_length=48,
            steps=steps // 2,
            learning_rate=LEARNING_RATES[number % len(LEARNING_RATES)] / 2,
            seed=number,
        )
    )
    return output / "model"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, check and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300, help="of the shortest pretraining")
    options = parser.parse_args(arguments)
    failures = 0
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        model = Path()
        for number in range(options.count):
            output = Path(folder) / str(number)
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                if number % 2:
                    model, kind = finetuned(number, options.steps, model, output), "fine-tuned"
                else:
                    model, kind = pretrained(number, options.steps, output), "pretrained"
                verdicts = list(check_model(load_model(str(model))[0]))
            failed = [v for v in verdicts if v.status == "FAILED"]
            passed = sum(v.status == "ok" for v in verdicts)
            cancelling = sum(v.cancelling for v in verdicts)
            print(
                f"{number}, {kind}: {passed} passed, {cancelling} tensors by every step's rounding"
            )
            for v in failed:
                print(f"  FAILED: {v.computation}, {v.dtype}, {v.backend}: {v.reason}")
            failures += bool(failed)
    print(f"{options.count - failures} of {options.count} checkpoints pass")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
