"""``xlnet-fast finetune``: options by flags and YAML, one sentence for each mistake."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from command_line import refused
from transformers import (
    XLNetConfig,
    XLNetForSequenceClassification,
    XLNetLMHeadModel,
    XLNetTokenizer,
)
from typer.testing import CliRunner

from xlnet_fast import cli
from xlnet_fast.cli.finetune import finetune_command
from xlnet_fast.text import builtin_text, train_tokenizer
from xlnet_fast.train import finetune as package
from xlnet_fast.train.finetune import FinetuneOptions, FinetuneResult

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = {"task": "text-classification", "model": "m", "train": "t.csv", "output": "o"}

app = typer.Typer(cls=cli._Commands, add_completion=False, pretty_exceptions_enable=False)
app.callback()(lambda: None)
app.command("finetune")(finetune_command)


def run(*arguments: str | Path, **options: object):
    """The command with its required options, those given, and more arguments."""
    flags = [str(x) for name, value in options.items() for x in (f"--{name}", value)]
    return CliRunner().invoke(app, ["finetune", *flags, *map(str, arguments)])


class Runs:
    """Takes the place of ``finetune``: notes the options and says how the run ended."""

    def __init__(self) -> None:
        self.options: FinetuneOptions | None = None
        self.stopped_by: int | None = None

    def __call__(self, options: FinetuneOptions) -> FinetuneResult:
        self.options = options
        return FinetuneResult(options.output, options.output / "model", {}, self.stopped_by)


@pytest.fixture
def runs(monkeypatch):
    """No run is run."""
    fake = Runs()
    monkeypatch.setattr(package, "finetune", fake, raising=False)
    return fake


def test_defaults_are_those_of_the_options(runs):
    result = run(**REQUIRED)
    assert result.exit_code == 0, result.output
    assert runs.options == FinetuneOptions(**{**REQUIRED, "output": Path("o")})
    assert result.stdout == "model: o/model\n"


def test_flags_of_every_kind(runs):
    result = run(
        "--column", "text=review", "--column", "label=stars", "--no-accelerate", "--from-scratch",
        "--patience", "3", "--layerwise-decay", "0.75", "--steps", "7", **REQUIRED,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    options = runs.options
    assert options.column == ("text=review", "label=stars")
    assert (options.accelerate, options.from_scratch) == (False, True)
    assert (options.patience, options.layerwise_decay, options.steps) == (3, 0.75, 7)


def test_options_of_a_file_and_flags_that_win(runs, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "task: token-classification\nmodel: m\ntrain: t.jsonl\noutput: o\n"
        "learning-rate: 1e-3\ncolumn: [tokens=w]\nbatch_size: 4\n"
    )
    result = run("--config", file, "--batch-size", "16")
    assert result.exit_code == 0, result.output
    options = runs.options
    assert (options.task, options.learning_rate) == ("token-classification", 1e-3)
    assert (options.column, options.batch_size) == (("tokens=w",), 16)


def test_a_stop_by_a_signal_is_the_exit_code(runs):
    runs.stopped_by = 15
    result = run(**REQUIRED)
    assert result.exit_code == 128 + 15
    assert "go on with --resume" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "regression"}, "task must be one of text-classification, token-classification"),
        ({"batch-size": 0}, "batch_size is 0, expected at least 1"),
        ({"epochs": "many"}, "invalid value for '--epochs'"),
        ({"nonsense": 1}, "no such option: --nonsense"),
        ({"column": "text"}, "column must be ROLE=NAME"),
        ({"column": "label=good,good"}, "column names the column 'good' twice"),
        ({"task": "multiple-choice", "threshold": 0.3}, "multiple-choice has no use for it"),
    ],
)
def test_wrong_options(runs, options, words):
    assert words in refused(run(**REQUIRED | options))


@pytest.mark.parametrize("name", REQUIRED)
def test_required_options(runs, name):
    options = {key: value for key, value in REQUIRED.items() if key != name}
    assert f"missing option '--{name}'" in refused(run(**options))


def test_files_that_are_not_there(tmp_path):
    options = REQUIRED | {"output": tmp_path / "o", "model": "./none"}
    assert "the model ./none of --model does not exist" in refused(run(**options))
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=300, d_model=16, n_layer=1, n_head=2, d_inner=16)
    XLNetLMHeadModel(config).save_pretrained(tmp_path / "m")
    train_tokenizer(builtin_text()[:20000], 300, tmp_path / "m")
    options |= {"model": tmp_path / "m", "train": tmp_path / "none.csv"}
    assert "none.csv does not exist" in refused(run(**options))


def test_help_needs_no_torch():
    code = (
        "import sys, typer\n"
        "from xlnet_fast.cli.finetune import finetune_command\n"
        "app = typer.Typer()\n"
        "app.command()(finetune_command)\n"
        "app(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--layerwise-decay" in done.stdout


def test_a_run_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model = tmp_path / "pretrained"
    train_tokenizer(builtin_text()[:20000], 300, model)
    size = len(XLNetTokenizer.from_pretrained(model))
    config = XLNetConfig(
        vocab_size=size, d_model=32, n_layer=1, n_head=2, d_inner=32, initializer_range=0.1
    )
    XLNetLMHeadModel(config).save_pretrained(model)
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "stars"])
        for i in range(40):
            writer.writerow([f"the value of {('yield', 'import')[i % 2]}", ("good", "bad")[i % 2]])
    out = tmp_path / "out"
    options = {
        "task": "text-classification", "model": model, "train": tmp_path / "train.csv",
        "output": out, "column": "label=stars", "steps": 30, "learning-rate": "3e-3",
        "eval-share": 0.25,
    }  # fmt: skip
    result = run(**options)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"model: {out / 'model'}\n"
    assert json.loads((out / "metrics.json").read_text())["eval"]["accuracy"] == 1.0
    XLNetForSequenceClassification.from_pretrained(out / "model")
    assert "--resume goes on with the run in it" in refused(run(**options))
