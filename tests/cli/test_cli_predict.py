"""`xlnet-fast predict` and `evaluate`: options, what is printed where, signals and closed pipes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from command_line import refused, run
from tiny_finetuning import checkpoint, text_rows, write_csv, write_jsonl
from transformers import XLNetForSequenceClassification
from typer.testing import CliRunner

from xlnet_fast import cli
from xlnet_fast.predict import PredictOptions, Predictor
from xlnet_fast.predict import run as module
from xlnet_fast.predict.options import GROUPS
from xlnet_fast.train import finetune as training
from xlnet_fast.train.finetune import EvaluateOptions
from xlnet_fast.train.finetune import evaluation_options as evaluation

STYLES = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = checkpoint(tmp_path_factory.mktemp("model"))
    names = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    XLNetForSequenceClassification.from_pretrained(folder, **names).save_pretrained(folder)
    return folder


@pytest.fixture
def source(tmp_path):
    return write_csv(tmp_path / "texts.csv", text_rows(12))


@pytest.fixture
def given(monkeypatch):
    """The options that a command line came to, without a run."""
    found: list[PredictOptions] = []
    done = module.PredictResult({"records": 1.0}, 1, 1)
    monkeypatch.setattr(module, "predict", lambda options, *_: found.append(options) or done)
    return found


def test_the_defaults_are_those_of_the_options(given):
    assert run("predict", "m", "--input", "a.csv").exit_code == 0
    assert given == [PredictOptions(model="m", input="a.csv")]


def test_flags_of_every_kind_and_a_yaml_file(given, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("model: other\ninput: a.csv\nset: [top_k=3]\nbatch_tokens: 64\n")
    result = run(
        "predict", "m", "--config", config, "--set", "top_k=2", "--set", "threshold=0.1",
        "--column", "text=review", "--keep", "a,b", "--skip-bad", "--long", "memory",
        "--output", "o.csv", "--resume",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert given == [
        PredictOptions(
            model="m", input="a.csv", set=("top_k=2", "threshold=0.1"), column=("text=review",),
            keep="a,b", skip_bad=True, long="memory", output=Path("o.csv"), resume=True,
            batch_tokens=64,
        )
    ]  # fmt: skip
    assert "answers: o.csv" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model was given"),
        (["m"], "no input was given"),
        (["m", "--input", "none.csv"], "the folder"),
        (["m", "--input", "-"], "standard input has no name"),
        (["m", "--input", "a.csv", "--output", "a.doc"], "must end in one of"),
        (["m", "--input", "a.csv", "--batch-tokens", "many"], "unable to parse string"),
    ],
    ids=str,
)
def test_wrong_input_is_told_in_a_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    assert words in refused(run("predict", *arguments))


@pytest.mark.parametrize(
    ("command", "options", "groups"),
    [("predict", PredictOptions, GROUPS), ("evaluate", EvaluateOptions, evaluation.GROUPS)],
)
def test_the_help_has_every_option_whole_and_in_order(command, options, groups):
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, [command, "--help"])
    lines = STYLES.sub("", result.stdout).splitlines()
    assert not [line for line in lines if "…" in line]
    names = [match[1] for line in lines if (match := re.match(r"│ (--[\w-]+) ", line))]
    fields = [field for field in dataclasses.fields(options) if field.name != "model"]
    told = [f"--{field.name}".replace("_", "-") for field in fields]
    assert sorted(names) == sorted([*told, "--config"])
    titles = [match[1] for line in lines if (match := re.match("╭─ (.+?) ─", line))]
    assert titles == ["Arguments", *groups]
    assert len([line for line in lines if line.startswith("│")]) == len(names) + 1


def test_answers_go_to_standard_output_and_all_else_to_standard_error(model, source):
    result = run("predict", model, "--input", source, "--keep", "label", "--set", "top_k=1")
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["row"] for answer in found] == [*range(1, 13)]
    assert [answer["input"]["label"] for answer in found] == ["good", "bad"] * 6
    assert {len(answer["scores"]) for answer in found} == {1}
    for name in ("records per second", "padding", "peak memory", "12 records of"):
        assert name in result.stderr
    again = CliRunner().invoke(
        cli.app,
        ["predict", str(model), "--input", "-", "--format", "csv", "--set", "top_k=1",
         "--keep", "label"],
        input=source.read_text(),
    )  # fmt: skip
    assert again.stdout == result.stdout


def test_a_signal_ends_it_with_its_number_and_tells_how_to_go_on(
    model, source, tmp_path, monkeypatch
):
    compute, out = Predictor.run, tmp_path / "out.jsonl"
    flags = [model, "--input", source, "--output", out, "--batch-tokens", "40"]

    def stopped(self, pieces):
        os.kill(os.getpid(), signal.SIGTERM)
        return compute(self, pieces)

    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "run", stopped)
        result = run("predict", *flags)
    assert result.exit_code == 128 + signal.SIGTERM
    assert re.search(r"stopped by a signal, \d of 12 records are answered; go on", result.stderr)
    assert not out.exists()
    result = run("predict", *flags, "--resume")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"answers: {out}\n"
    assert len(out.read_text(encoding="utf-8").splitlines()) == 12


def test_a_reader_that_has_enough(model, source, monkeypatch):
    """As ``xlnet-fast predict ... | head``: no traceback, no error."""

    def closed(options, say, tell):
        raise BrokenPipeError

    monkeypatch.setattr(module, "predict", closed)
    number = os.dup(1)
    with os.fdopen(number, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        from xlnet_fast.cli.predict import run_predict

        run_predict(PredictOptions(model=str(model), input=str(source)))


def test_an_evaluation_as_a_table_and_as_json(model, tmp_path, monkeypatch):
    data = write_jsonl(tmp_path / "eval.jsonl", text_rows(10))
    result = run("evaluate", model, "--data", data)
    assert result.exit_code == 0, result.output
    assert f"text-classification, 10 rows of {data}:" in result.stdout.replace("\n", "")
    assert re.search(r"accuracy\s+│ [01]\.\d{4}", result.stdout)
    result = run("evaluate", model, "--data", data, "--json")
    found = json.loads(result.stdout)
    assert found["rows"] == 10
    assert set(found["per_label"]) == {"good", "bad"}
    assert "no data were given" in refused(run("evaluate", model))
    monkeypatch.setattr(training, "evaluate", None, raising=False)
    assert "no model was given" in refused(run("evaluate"))
