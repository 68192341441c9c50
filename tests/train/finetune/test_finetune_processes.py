"""Two gloo processes learn what one does with the same global batch, uneven last batch and all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import _finetune_processes as processes
import datasets
import pytest
import torch
from safetensors.torch import load_file
from tiny_finetuning import ROWS, checkpoint, options, read_jsonl, write_jsonl
from transformers import AutoConfig
from two_processes import in_two_processes

from xlnet_fast.train.finetune import FinetuneOptions, finetune

pytestmark = pytest.mark.usefixtures("undrawn")

CASES = ("text-classification", "token-classification", "question-answering", "beam", "fsdp")
# 30 rows in batches of 4 leave 2, all of them in the first process; 22 rows in evaluation batches
# of 2 x 4 leave 6.
RUN = {
    "steps": 17,
    "eval_batch_size": 4,
    "eval_every": 5,
    "log_every": 1,
    "learning_rate": 1e-3,
    "keep": 9,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` keeps of a file stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def history(output: Path, key: str) -> list[float]:
    """What the last checkpoint says was logged."""
    newest = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    return [entry[key] for entry in state["log_history"] if key in entry]


def assert_same_run(one: Path, two: Path) -> None:
    """Losses, weights, metrics and predictions agree up to rounding."""
    for key in ("loss", "grad_norm", "eval_loss"):
        assert bool(history(one, key)) or key == "eval_loss"
        assert history(two, key) == pytest.approx(history(one, key), rel=2e-4, abs=1e-5), key
    weights, others = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-4, msg=name)
    results, rest = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    assert results["best_step"] == rest["best_step"]
    for name, value in results["eval"].items():
        if isinstance(value, float):
            assert rest["eval"][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    lines = (run / "predictions_eval.jsonl" for run in (one, two))
    rows, others = ([row["prediction"] for row in read_jsonl(file)] for file in lines)
    assert rows == others


def beam_checkpoint(folder: Path) -> Path:
    """A checkpoint that says it is of the beam head's class."""
    checkpoint(folder)
    config = AutoConfig.from_pretrained(folder)
    config.architectures, config.start_n_top, config.end_n_top = ["XLNetModel"], 3, 2
    config.save_pretrained(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"XLNetModel"', '"XLNetForQuestionAnswering"'))
    return folder


def both(folder: Path) -> tuple[dict[str, FinetuneOptions], dict[str, FinetuneOptions]]:
    """What one process and each of two are told, by task."""
    model, beam = checkpoint(folder / "model"), beam_checkpoint(folder / "beam_model")
    ones, twos = {}, {}
    for task in CASES:
        (folder / task).mkdir()
        named = {"beam": "question-answering", "fsdp": "text-classification"}.get(task, task)
        run = options(named, beam if task == "beam" else model, folder / task, batch_size=4, **RUN)
        write_jsonl(folder / task / "train.jsonl", ROWS[named](30))
        ones[task] = dataclasses.replace(run, from_scratch=task == "beam")
        twos[task] = dataclasses.replace(ones[task], batch_size=2, output=folder / task / "two")
    # 30 rows in batches of 8: the last one is short by a row, in one accumulation of two.
    ones["beam"] = dataclasses.replace(ones["beam"], batch_size=8)
    twos["beam"] = dataclasses.replace(twos["beam"], gradient_accumulation=2)
    twos["fsdp"] = dataclasses.replace(twos["fsdp"], fsdp=True)
    return ones, twos


def test_two_processes_learn_what_one_does(tmp_path):
    """The beam's is also accumulated over two batches, and with FSDP2 weights are sharded.

    Then one goes on from step 10 of 17, with 8 steps in an epoch, as if nothing had been; bit for
    bit. All in one test, since starting two processes takes as long as a run.
    """
    ones, twos = both(tmp_path)
    whole = twos["text-classification"].output
    cut = dataclasses.replace(twos["text-classification"], output=tmp_path / "cut", resume=True)
    in_two_processes(processes.run, tmp_path / "two-cache", list(twos.values()), cut, 10)
    for task, one in ones.items():
        two = twos[task].output
        finetune(one)
        assert_same_run(one.output, two)
        config = json.loads((two / "model" / "config.json").read_text())
        assert config["architectures"][0].startswith("XLNetFor")

    assert history(cut.output, "loss") == history(whole, "loss")
    weights, others = (
        load_file(run / "model" / "model.safetensors") for run in (whole, cut.output)
    )
    assert all(torch.equal(weights[name], others[name]) for name in weights)
