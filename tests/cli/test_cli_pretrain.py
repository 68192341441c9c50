"""`xlnet-fast pretrain`: options from flags and a YAML file, exit codes, a stop by signal."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import forked
import pytest
from command_line import refused
from tiny_pretraining import write_text
from typer.testing import CliRunner

from xlnet_fast import cli
from xlnet_fast.train.pretraining import PretrainOptions
from xlnet_fast.train.shared import requirements

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path):
    return CliRunner().invoke(cli.app, ["pretrain", *map(str, arguments)])


@pytest.fixture
def given(monkeypatch):
    """The options that a command line came to, without a run."""
    found: list[PretrainOptions] = []

    def catch(options: PretrainOptions):
        found.append(options)
        return command_result

    command_result = type("Result", (), {"stopped_by": None, "metrics": {}, "model": "here"})()
    from xlnet_fast.train.pretraining import run as module

    monkeypatch.setattr(module, "pretrain", catch)
    return found


def test_the_defaults_are_those_of_the_options(given, tmp_path):
    assert run("--output", tmp_path).exit_code == 0
    assert given == [PretrainOptions(output=tmp_path)]


def test_flags_of_every_kind(given, tmp_path):
    result = run(
        "--output", tmp_path, "--text", "a.txt", "--text", "b.txt", "--seq-len", "64", "--bi-data",
        "--no-accelerate", "--learning-rate", "1e-3", "--size", "tiny", "--warmup", "100",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert given == [
        PretrainOptions(
            output=tmp_path, text=("a.txt", "b.txt"), seq_len=64, bi_data=True, accelerate=False,
            learning_rate=1e-3, size="tiny", warmup=100.0,
        )
    ]  # fmt: skip


def test_a_yaml_file_and_flags_over_it(given, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("output: out\ntext: [a.txt]\nseq-len: 64\nbi_data: true\nlearning_rate: 1e-3")
    assert run("--config", config, "--seq-len", "32").exit_code == 0
    assert given == [
        PretrainOptions(
            output=Path("out"), text=("a.txt",), seq_len=32, bi_data=True, learning_rate=1e-3
        )
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("seqlen: 3", "sets seqlen, which is no option; they are: accelerate,"),
        ("a: [1", "is no valid YAML"),
        ("- 1", "must hold 'option: value' lines"),
        ("seq_len: [1, 2]", "expected a single value"),
        ("text: a.txt", "expected a list"),
        ("seq_len:", "expected a value"),
        ("seq_len: {a: 1}", "expected a value"),
        ("seq_len: many", "unable to parse string as an integer"),
    ],
    ids=str,
)
def test_config_files_that_are_refused(given, tmp_path, content, words):
    config = tmp_path / "run.yaml"
    if content is not None:
        config.write_text(content)
    assert words in refused(run("--output", tmp_path, "--config", config))
    assert given == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seq-len", "many"], "unable to parse string as an integer"),
        (["--size", "huge"], "size must be one of"),
        (["--text", "/nowhere.txt"], "does not exist"),
        (["--precision", "fp16"], "fp16 needs a GPU"),
    ],
    ids=str,
)
def test_wrong_options_are_told_in_a_sentence(tmp_path, arguments, words):
    assert words in refused(run("--output", tmp_path / "run", *arguments))


@pytest.mark.parametrize(
    "command",
    [["pretrain"], ["finetune", "--task", "multiple-choice", "--model", "m", "--train", "t"]],
)
def test_without_the_packages_of_training(monkeypatch, tmp_path, command):
    found = requirements.find_spec
    monkeypatch.setattr(
        requirements,
        "find_spec",
        lambda name: None if name in ("sklearn", "datasets") else found(name),
    )
    result = CliRunner().invoke(cli.app, [*command, "--output", str(tmp_path / "run")])
    message = "training needs datasets, scikit-learn: pip install datasets scikit-learn"
    assert message in refused(result)
    assert not (tmp_path / "run").exists()


def test_the_extra_names_all_packages_of_training():
    project = (ROOT / "pyproject.toml").read_text()
    (extra,) = re.findall(r"^train = \[(.*?)\]$", project, flags=re.MULTILINE | re.DOTALL)
    assert set(requirements.PACKAGES.values()) <= set(re.findall(r'"([\w-]+)', extra))


def test_the_output_is_required():
    assert "output" in refused(run())


def command(words: list[str], folder: Path) -> None:
    """What ``python -m xlnet_fast`` does, with what it says in files, once all is imported."""
    for name, stream in (("output", 1), ("errors", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    sys.argv = ["xlnet_fast", *words]
    runpy.run_module("xlnet_fast", run_name="__main__", alter_sys=True)


def test_a_signal_stops_it_with_a_checkpoint_and_its_code(tmp_path):
    """The whole command: SIGTERM, a checkpoint, 143, and how to go on."""
    text = write_text(tmp_path / "articles.txt")
    endless = [
        "pretrain", "--output", str(tmp_path / "run"), "--text", str(text), "--vocab-size", "300",
        "--d-model", "16", "--n-layer", "1", "--n-head", "2", "--d-inner", "16", "--seq-len", "32",
        "--batch-size", "4", "--log-every", "1", "--eval-share", "0.2", "--steps", "100000",
    ]  # fmt: skip
    output, errors = tmp_path / "output", tmp_path / "errors"
    process = forked.process(command, endless, tmp_path)
    process.start()
    while not errors.exists() or "\nstep 3/" not in errors.read_text():
        assert process.is_alive(), errors.read_text()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM, errors.read_text()
    assert "go on from" in output.read_text()
    assert "--resume" in output.read_text()
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] >= 3
