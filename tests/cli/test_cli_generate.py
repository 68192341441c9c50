"""`xlnet-fast generate`: options, what it prints where, and a model that `pretrain` left."""

from __future__ import annotations

import dataclasses
import re

import pytest
from command_line import refused, run
from tiny_finetuning import checkpoint
from tiny_pretraining import tiny_options, write_text
from typer.testing import CliRunner

from xlnet_fast import cli
from xlnet_fast.generate import GenerateOptions
from xlnet_fast.generate import run as module
from xlnet_fast.generate.options import GROUPS
from xlnet_fast.train.pretraining import pretrain

STYLES = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture
def given(monkeypatch):
    """The options that a command line came to, without a run."""
    found: list[GenerateOptions] = []
    done = module.GenerateResult([], {"new_tokens": 1.0})
    monkeypatch.setattr(module, "generate", lambda options, say: found.append(options) or done)
    return found


def test_the_defaults_are_those_of_the_options(given):
    assert run("generate", "m", "--prompt", "a").exit_code == 0
    assert given == [GenerateOptions(model="m", prompt=("a",))]


def test_flags_of_every_kind_and_a_yaml_file(given, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("model: other\nprompt: [a, b]\ntop_k: 5\nsample: true\nstream: false")
    result = run(
        "generate", "m", "--config", config, "--top-k", "7", "--temperature", "0.5", "--no-memory",
        "--prompt-lookup", "3", "--output", "texts",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert given == [
        GenerateOptions(
            model="m", prompt=("a", "b"), top_k=7, sample=True, temperature=0.5, memory=False,
            prompt_lookup=3, output=module.Path("texts"),
        )
    ]  # fmt: skip
    assert run("generate", "--config", config).exit_code == 0
    assert given[1].model == "other"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model was given"),
        (["m"], "no prompt was given"),
        (["m", "n"], "unexpected extra argument"),
        (["m", "--prompt", ""], "prompt 1 is empty"),
        (["m", "--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["m", "--prompt", "a", "--top-k", "many"], "unable to parse string as an integer"),
    ],
    ids=str,
)
def test_wrong_input_is_told_in_a_sentence(arguments, words):
    assert words in refused(run("generate", *arguments))


def test_the_help_has_every_option_whole_and_in_order():
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, ["generate", "--help"])
    lines = STYLES.sub("", result.stdout).splitlines()
    assert not [line for line in lines if "…" in line]
    names = [match[1] for line in lines if (match := re.match(r"│ (--[\w-]+) ", line))]
    fields = [field for field in dataclasses.fields(GenerateOptions) if field.name != "model"]
    told = [f"--{'no-' if f.default is True else ''}{f.name}".replace("_", "-") for f in fields]
    assert sorted(names) == sorted([*told, "--config"])
    titles = [match[1] for line in lines if (match := re.match("╭─ (.+?) ─", line))]
    assert titles == ["Arguments", *GROUPS]
    assert len([line for line in lines if line.startswith("│")]) == len(names) + 1


def test_a_run_of_pretrain_is_a_model_to_write_with(tmp_path):
    options = tiny_options(tmp_path / "run", write_text(tmp_path / "articles.txt"))
    pretrain(dataclasses.replace(options, steps=2, eval_every=2, save_every=2))
    flags = ["--prompt", "the class", "--max-new-tokens", "5"]
    result = run("generate", tmp_path / "run", *flags)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("the class")
    assert result.stdout.count("\n") == 1
    assert re.search(r"new tokens\s+│ 5 ", result.stderr)
    for name in ("seconds", "tokens per second", "ms per token", "peak memory"):
        assert name in result.stderr
    assert run("generate", tmp_path / "run" / "model", *flags).stdout == result.stdout
    # A run that has not ended yet: its newest checkpoint.
    (tmp_path / "run" / "model").rename(tmp_path / "elsewhere")
    assert run("generate", tmp_path / "run", *flags).stdout == result.stdout
    (tmp_path / "none").mkdir()
    assert "holds no config.json" in refused(run("generate", tmp_path / "none", *flags))


def test_a_warning_is_a_sentence_and_json_lines_go_to_a_file(tmp_path):
    folder, out = checkpoint(tmp_path / "model", mem_len=2), tmp_path / "texts.jsonl"
    flags = ["--prompt", "the value of a class", "--max-new-tokens", "2", "--output", out]
    result = run("generate", folder, *flags)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"texts: {out}\n"
    assert result.stderr.startswith("warning: the model remembers 2 tokens (mem_len)")
    assert out.read_text(encoding="utf-8").count("\n") == 1


def test_texts_that_cannot_be_written(monkeypatch):
    def full(options, say):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "generate", full)
    result = run("generate", "m", "--prompt", "a")
    assert result.exit_code == 2
    assert "the texts could not be written: No space left on device" in result.output
