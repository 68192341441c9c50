"""`xlnet-fast perplexity`: options, what it prints where, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import re
import signal

import pytest
from command_line import refused, run
from tiny_foretelling import transfo_xl, words_text
from tiny_pretraining import tiny_options, write_text
from typer.testing import CliRunner

from xlnet_fast import cli
from xlnet_fast.perplexity import PerplexityOptions
from xlnet_fast.perplexity import run as module
from xlnet_fast.perplexity.options import GROUPS
from xlnet_fast.train.pretraining import pretrain

STYLES = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture
def given(monkeypatch):
    """The options that a command line came to, without a run."""
    found: list[PerplexityOptions] = []
    done = module.PerplexityResult({"tokens": 3}, {}, 3)
    monkeypatch.setattr(module, "perplexity", lambda options, tell: found.append(options) or done)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = transfo_xl(tmp_path_factory.mktemp("model"))
    (made / "text.txt").write_text(words_text(9))
    return made


def test_the_defaults_are_those_of_the_options(given):
    assert run("perplexity", "m", "--text", "t").exit_code == 0
    assert given == [PerplexityOptions(model="m", text="t")]


def test_flags_of_every_kind_and_a_yaml_file(given, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("model: other\ntext: t\nsame_length: true\nmemory_length: 5")
    assert run("perplexity", "--config", config, "--clamp-len", "4").exit_code == 0
    assert run("perplexity", "m", "--config", config, "--no-same-length").exit_code == 0
    base = {"text": "t", "memory_length": 5}
    assert given == [
        PerplexityOptions(model="other", same_length=True, clamp_len=4, **base),
        PerplexityOptions(model="m", same_length=False, **base),
    ]


def test_the_help_has_every_option_whole_and_in_order():
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, ["perplexity", "--help"])
    lines = STYLES.sub("", result.stdout).splitlines()
    assert not [line for line in lines if "…" in line]
    names = [match[1] for line in lines if (match := re.match(r"│ (--[][\w-]+) ", line))]
    fields = [field for field in dataclasses.fields(PerplexityOptions) if field.name != "model"]
    told = [f"--{field.name}".replace("_", "-") for field in fields]
    told[told.index("--same-length")] = "--[no-]same-length"
    assert sorted(names) == sorted([*told, "--config"])
    titles = [match[1] for line in lines if (match := re.match("╭─ (.+?) ─", line))]
    assert titles == ["Arguments", *GROUPS]


def test_figures_go_to_stdout_and_all_else_to_stderr(folder):
    result = run("perplexity", folder, "--text", folder / "text.txt", "--form", "tokenized")
    assert result.exit_code == 0, result.output
    for name in ("perplexity", "bits per character", "bits per byte", "tokens per second", "peak"):
        assert name in result.stdout, name
    assert re.search(r"loss, nats per token\s+│\s+\d+\.\d{4} ", result.stdout)
    assert "read as tokenized; 1 left out" in result.stderr


def test_json_goes_to_stdout_or_to_a_file(folder, tmp_path):
    flags = ["perplexity", folder, "--text", folder / "text.txt", "--form", "tokenized"]
    found = json.loads(run(*flags, "--output", "-").stdout)
    result = run(*flags, "--output", tmp_path / "out.json")
    assert result.stdout.endswith(f"written: {tmp_path / 'out.json'}\n")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["loss"] == found["loss"]
    assert list(written) == list(found)


def test_a_run_of_pretrain_is_a_model_to_measure(tmp_path):
    text = write_text(tmp_path / "articles.txt", 2000)
    options = tiny_options(tmp_path / "run", write_text(tmp_path / "all.txt"))
    pretrain(dataclasses.replace(options, steps=2, eval_every=2, save_every=2))
    flags = ["--segment-length", "32", "--limit", "100", "--output", "-"]
    result = run("perplexity", tmp_path / "run", "--text", text, *flags)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["tokens"] == 99
    assert 3 < found["loss"] < 8


@pytest.mark.parametrize("measured", [{}, {"tokens": 4}])
def test_a_signal_is_told_in_the_exit_code(monkeypatch, measured):
    done = module.PerplexityResult(measured, {}, 9, signal.SIGTERM)
    monkeypatch.setattr(module, "perplexity", lambda options, tell: done)
    result = run("perplexity", "m", "--text", "t")
    assert result.exit_code == 128 + signal.SIGTERM
    assert f"stopped by a signal, {len(measured) * 4} of 9 tokens are foretold" in result.stderr
    assert bool(result.stdout) == bool(measured)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model was given"),
        (["m"], "no text was given, expected --text FILE"),
        (["m", "n", "--text", "t"], "unexpected extra argument"),
        (["m", "--text", "t", "--limit", "many"], "unable to parse string as an integer"),
        (["m", "--text", "nowhere.txt"], "text file nowhere.txt does not exist"),
    ],
    ids=str,
)
def test_wrong_input_is_told_in_a_sentence(arguments, words):
    assert words in refused(run("perplexity", *arguments))
