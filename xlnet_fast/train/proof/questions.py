"""Does training on the accelerated modules learn what it should? Three questions, one command.

1. Curves: the same data and the same initial weights, Hugging Face's modules and ours, 200 steps.
   The yardstick is Hugging Face's own curve from weights that moved by one rounding.
2. Pretraining: a tiny model on the built-in text, against the unigram frequencies of that text,
   on passages that were held out.
3. Fine-tuning: the two tasks of `tasks`, from the pretrained weights, and from scratch with
   the same steps; of each the best of three learning rates, chosen by the evaluation rows.
   Pretraining has to help where the order of words is asked for; where single words tell the
   answer, the comparison is reported.

    python -m xlnet_fast.train.proof --out DIR [--steps 3000] [--seeds 3]

Leaves training_curves.csv, training_curves.png, training_proof.json and the runs in DIR.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import XLNetConfig, XLNetLMHeadModel

from xlnet_fast import info
from xlnet_fast.tolerance import move_by_one_rounding
from xlnet_fast.train.finetune import FinetuneOptions, finetune
from xlnet_fast.train.pretraining import pretrain
from xlnet_fast.train.pretraining.options import SIZES, PretrainOptions
from xlnet_fast.train.pretraining.sources import TextSource, train_on
from xlnet_fast.train.proof.tasks import TASKS, make_tasks, repeated_share
from xlnet_fast.train.shared.run_folder import write_json

VOCABULARY = 4000
CURVE_STEPS = 200
MOVED = (1, 2, 3)  # seeds of the runs whose weights moved by one rounding
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
FINETUNING_STEPS = {"order": 300, "article": 120}


# --- curves --------------------------------------------------------------------------------------


def initial_model(folder: Path, tokenizer: Any, moved: int | None) -> None:
    """A model, perhaps with each weight moved to a neighbouring fp32 number.

    The weights are wide: from HF's 0.02 so small a model attends to all keys alike for long, and a
    wrong score would hardly show in the loss.
    """
    torch.manual_seed(0)
    d_model, n_layer, n_head, d_inner = SIZES["tiny"]
    config = XLNetConfig(
        vocab_size=len(tokenizer), d_model=d_model, n_layer=n_layer, n_head=n_head,
        d_inner=d_inner, mem_len=None, initializer_range=0.1,
    )  # fmt: skip
    model = XLNetLMHeadModel(config)
    if moved is not None:
        move_by_one_rounding(model, moved)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def curve(out: Path, name: str, moved: int | None, accelerate: bool) -> list[float]:
    """Training loss of each step."""
    tokenizer = train_on(TextSource().open(), VOCABULARY)
    start = out / "curves" / f"start-{moved}"
    initial_model(start, tokenizer, moved)
    options = PretrainOptions(
        output=out / "curves" / name, model=str(start), seq_len=128, batch_size=4,
        steps=CURVE_STEPS, learning_rate=1e-3, dropout=0.0, log_every=1, eval_every=CURVE_STEPS,
        save_every=CURVE_STEPS, accelerate=accelerate, overwrite=True,
    )  # fmt: skip
    pretrain(options)
    state = options.output / f"checkpoint-{CURVE_STEPS}" / "trainer_state.json"
    history = json.loads(state.read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def compare_curves(out: Path) -> dict[str, Any]:
    """All curves, their plot, and how far ours and the moved ones are from Hugging Face's."""
    curves = {"hf": curve(out, "hf", None, False), "ours": curve(out, "ours", None, True)}
    curves |= {f"hf_moved_{seed}": curve(out, f"moved-{seed}", seed, False) for seed in MOVED}
    with open(out / "training_curves.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *curves])
        writer.writerows(zip(range(1, CURVE_STEPS + 1), *curves.values(), strict=True))
    draw_curves(curves, out / "training_curves.png")
    distance = {name: largest_distance(values, curves["hf"]) for name, values in curves.items()}
    noise = max(distance[f"hf_moved_{seed}"] for seed in MOVED)
    return {
        "steps": CURVE_STEPS,
        "first_loss": curves["hf"][0],
        "last_loss": curves["hf"][-1],
        "largest_distance_ours": distance["ours"],
        "largest_distance_of_one_rounding": noise,
        "within_noise": distance["ours"] <= 2 * noise,
    }


def largest_distance(curve: list[float], other: list[float]) -> float:
    """Of two losses at the same step."""
    return max(abs(a - b) for a, b in zip(curve, other, strict=True))


def draw_curves(curves: dict[str, list[float]], path: Path) -> None:
    """Above the losses of Hugging Face and ours, below the distances from Hugging Face's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps = range(1, len(curves["hf"]) + 1)
    above.plot(steps, curves["hf"], color="#E69F00", linewidth=4, label="Hugging Face")
    above.plot(steps, curves["ours"], color="#0072B2", linewidth=1.2, label="xlnet_fast")
    above.set_ylabel("training loss (nats)")
    above.legend()
    above.set_title("Pretraining, same data and initial weights, fp32, no dropout")
    moved = [name for name in curves if name.startswith("hf_moved")]
    top = 1e-4
    for name in (*moved, "ours"):
        top = max(top, 2 * largest_distance(curves[name], curves["hf"]))
        gaps = [abs(a - b) or None for a, b in zip(curves[name], curves["hf"], strict=True)]
        label = "xlnet_fast" if name == "ours" else None
        if name == moved[0]:
            label = f"Hugging Face, {len(moved)} times from weights moved by one rounding"
        colour, size = ("#0072B2", 4.0) if name == "ours" else ("#AAAAAA", 2.5)
        below.semilogy(steps, gaps, "o", color=colour, markersize=size, label=label)
    below.set_ylim(1e-7, top)
    below.set_ylabel("distance from Hugging Face's loss, if any")
    below.set_xlabel("step")
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


# --- pretraining and fine-tuning -----------------------------------------------------------------


def prove_pretraining(out: Path, steps: int) -> dict[str, Any]:
    """Perplexity after ``steps`` updates, and that of the unigram frequencies."""
    options = PretrainOptions(
        output=out / "pretrained", text=(str(out / "tasks" / "text.txt"),),
        eval_text=(str(out / "tasks" / "held_out.txt"),), vocab_size=VOCABULARY,
        size="tiny", seq_len=128, batch_size=8, steps=steps, learning_rate=1e-3, log_every=50,
        eval_every=max(1, steps // 10), save_every=steps, overwrite=True,
    )  # fmt: skip
    begin = time.monotonic()
    result = pretrain(options)
    return {**result.metrics, "minutes": (time.monotonic() - begin) / 60}


def prove_finetuning(out: Path, task: str, seeds: int) -> dict[str, Any]:
    """Test accuracies of both starts, one per seed, at the learning rate that evaluates better."""
    data, steps = out / "tasks" / task, FINETUNING_STEPS[task]
    labels = [json.loads(row)["label"] for row in (data / "test.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "steps": steps,
        "test_rows": len(labels),
        "most_frequent_label": max(Counter(labels).values()) / len(labels),
    }
    for name, scratch in (("pretrained", False), ("from_scratch", True)):
        runs: dict[float, list[dict[str, dict[str, float]]]] = {}
        for rate in LEARNING_RATES:
            options = FinetuneOptions(
                task="text-classification", model=str(out / "pretrained" / "model"),
                train=str(data / "train.jsonl"), eval=str(data / "eval.jsonl"),
                test=str(data / "test.jsonl"), output=out / "finetuned", from_scratch=scratch,
                max_length=128, batch_size=16, steps=steps, eval_every=max(1, steps // 6),
                learning_rate=rate, overwrite=True, keep=1,
            )  # fmt: skip
            runs[rate] = [finetune(replace(options, seed=seed)).metrics for seed in range(seeds)]
        best = max(runs, key=lambda rate: mean(runs[rate], "eval"))
        found[name] = {
            "learning_rate": best,
            "eval_accuracy": {f"{rate:g}": mean(runs[rate], "eval") for rate in LEARNING_RATES},
            "test_accuracy": [metrics["test"]["accuracy"] for metrics in runs[best]],
            "mean_test_accuracy": mean(runs[best], "test"),
        }
    return found


def mean(runs: list[dict[str, dict[str, float]]], split: str) -> float:
    """Of the accuracies of several runs."""
    return statistics.fmean(metrics[split]["accuracy"] for metrics in runs)


def answers(proof: dict[str, Any]) -> dict[str, bool]:
    """The three questions, each with yes or no."""
    pretraining, order = proof["pretraining"], proof["finetuning"]["order"]
    return {
        "same curve within noise": proof["curves"]["within_noise"],
        "below half of the unigram perplexity": pretraining["eval_perplexity"]
        < pretraining["unigram_perplexity"] / 2,
        "better than from scratch, whatever the seed": min(order["pretrained"]["test_accuracy"])
        > max(order["from_scratch"]["test_accuracy"]),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run all three; 0 if the answers are yes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000, help="of pretraining")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each kind")
    given = parser.parse_args(arguments)
    out = given.out
    make_tasks(out / "tasks")
    machine = info.gather()
    proof = {
        "environment": {name: machine[name] for name in ("versions", "devices")},
        "repeated_share_of_text": repeated_share(),
        "curves": compare_curves(out),
        "pretraining": prove_pretraining(out, given.steps),
        "finetuning": {task: prove_finetuning(out, task, given.seeds) for task in TASKS},
    }
    write_json(out / "training_proof.json", proof)
    print(json.dumps({name: proof[name] for name in proof if name != "environment"}, indent=1))
    found = answers(proof)
    for question, answer in found.items():
        print(f"{question}: {'yes' if answer else 'NO'}")
    return 0 if all(found.values()) else 1
