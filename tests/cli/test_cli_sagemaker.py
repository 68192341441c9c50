"""A SageMaker job: how it ends, what it leaves behind, its processes, real runs of some steps."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sagemaker_container import channel, container, environment
from transformers import AutoTokenizer, XLNetLMHeadModel

from xlnet_fast.cli import sagemaker
from xlnet_fast.cli.sagemaker import SHUTDOWN_TIMEOUT_S, deliver, launcher_of, run
from xlnet_fast.cli.sagemaker_contract import Job
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.text import builtin_text

__all__ = ["container"]  # a fixture
ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
TINY = {
    "size": "tiny", "d_model": 32, "n-layer": 1, "n_head": "2", "d_inner": 32, "seq-len": 32,
    "batch_size": 2, "vocab_size": 300, "steps": STEPS, "save_every": 100, "eval_every": 100,
    "log_every": 1, "eval_share": 0.2,
}  # fmt: skip


@pytest.fixture
def command(monkeypatch):
    """In place of ``xlnet-fast``: notes its arguments, leaves a run behind, returns a code."""

    class Command:
        def __init__(self) -> None:
            self.code: int | None = None
            self.calls: list[list[str]] = []

        def __call__(self, words, prog_name, standalone_mode):
            assert (prog_name, standalone_mode) == ("xlnet-fast", False)
            self.calls.append(words)
            (output,) = (Path(w.split("=")[1]) for w in words if w.startswith("--output="))
            (output / "model").mkdir(exist_ok=True)
            (output / "model" / "config.json").write_text("new")
            (output / "metrics.json").write_text("{}")
            (output / "loss.png").write_bytes(b"png")
            (output / "predictions_test.jsonl").write_text("{}")
            return self.code

    replacement = Command()
    monkeypatch.setattr(sagemaker, "app", replacement)
    return replacement


# --- what is left behind -------------------------------------------------------------------------


def test_success_delivers_model_metrics_and_plot(container, command, capsys):
    (container / "model" / "config.json").write_text("old")
    (container / "output" / "failure").write_text("of an earlier start")
    assert run(environment(container, {"steps": 3})) == 0
    assert command.calls == [
        ["pretrain", "--steps=3", f"--output={container / 'checkpoints'}", "--resume"]
    ]
    assert [path.name for path in (container / "model").iterdir()] == ["config.json"]
    assert (container / "model" / "config.json").read_text() == "new"
    results = sorted(path.name for path in (container / "output" / "data").iterdir())
    assert results == ["loss.png", "metrics.json", "predictions_test.jsonl"]
    assert not (container / "output" / "failure").exists()
    assert "built-in text\nxlnet-fast pretrain --steps=3 " in capsys.readouterr().out


def test_a_run_in_the_folder_of_results_is_not_copied_onto_itself(container, command):
    (container / "checkpoints").rmdir()
    assert run(environment(container, {})) == 0
    assert (container / "output" / "data" / "metrics.json").read_text() == "{}"


def test_the_main_process_alone_delivers(container, command, capsys):
    (container / "output" / "failure").write_text("of another process")
    assert run(environment(container, {}, RANK=1, SM_NUM_GPUS=2)) == 0
    assert not any((container / "model").iterdir())
    assert (container / "output" / "failure").exists()
    assert capsys.readouterr().out == ""
    assert run(environment(container, {}, RANK=0, SM_NUM_GPUS=2)) == 0
    assert any((container / "model").iterdir())


def test_another_exit_code_is_passed_on_without_a_model(container, command):
    command.code = 143
    assert run(environment(container, {})) == 143
    assert not any((container / "model").iterdir())
    assert not (container / "output" / "failure").exists()


def test_a_run_without_a_model(container):
    job = Job([], container / "checkpoints", container / "model", [])
    with pytest.raises(XLNetFastError, match="left no model in"):
        deliver(job, {})


def test_a_model_that_cannot_be_copied(container, command, capsys, monkeypatch):
    def full(source, target, *rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sagemaker.os, "replace", full)
    assert run(environment(container, {})) == 2
    assert not any((container / "model").iterdir())
    told = capsys.readouterr().err
    assert "could not be copied to" in told
    assert "No space left on device" in told
    assert "No space left" in (container / "output" / "failure").read_text()


def test_a_crash_is_told_and_stays_a_crash(container, monkeypatch):
    def crash(*_, **__):
        raise RuntimeError("out of luck" * 1000)

    monkeypatch.setattr(sagemaker, "app", crash)
    with pytest.raises(RuntimeError, match="out of luck"):
        run(environment(container, {}))
    told = (container / "output" / "failure").read_text()
    assert told.startswith("RuntimeError: out of luck")
    assert len(told) == 1024


def test_the_first_failure_of_several_processes_stays(container, capsys):
    (container / "output" / "failure").write_text("the cause")
    assert run(environment(container, {"nonsense": 1}, RANK=1)) == 2
    assert (container / "output" / "failure").read_text() == "the cause"


def test_no_folder_for_failures(container, tmp_path, capsys):
    variables = environment(container, {"command": "bench"}, SM_OUTPUT_DIR=tmp_path / "none")
    assert run(variables) == 2
    assert capsys.readouterr().err.startswith("error: the hyperparameter command is 'bench'")
    assert not (tmp_path / "none").exists()


def test_a_file_of_failures_that_cannot_be_written(container, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    assert run(environment(container, {"command": "bench"})) == 2
    assert "failure cannot be written: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hyperparameters", "words"),
    [
        ({"nonsense": 1}, "no such option: --nonsense"),
        ({"nonsense": True}, "no such option: --nonsense"),
        ({"bi_data": 3}, "'--bi-data' does not take a value"),
        ({"steps": True}, "invalid value for '--steps'"),
        ({"steps": "many"}, "invalid value for '--steps'"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"resume": True, "overwrite": True}, "resume goes on with an earlier run"),
    ],
)
def test_the_command_refuses_in_its_own_words(container, hyperparameters, words, capsys):
    assert run(environment(container, hyperparameters)) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert words in told
    assert (container / "output" / "failure").read_text() == told.removeprefix("error: ").strip()


# --- several processes ---------------------------------------------------------------------------


def test_one_process_is_not_launched(container):
    assert launcher_of({}) is None
    assert launcher_of(environment(container, {}, SM_NUM_GPUS=1)) is None


def test_several_gpus(container):
    launcher = launcher_of(environment(container, {}, SM_NUM_GPUS=4))
    assert launcher == [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--node-rank=0",
        "--nproc-per-node=4", "--master-addr=127.0.0.1", "--master-port=29500",
        "-m", "xlnet_fast.cli.sagemaker",
    ]  # fmt: skip


def test_several_hosts(container):
    hosts = {"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": "algo-2", "MASTER_PORT": 7777}
    launcher = launcher_of(environment(container, {}, SM_NUM_GPUS=8, **hosts))
    assert launcher is not None
    assert launcher[3:8] == [
        "--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=algo-1",
        "--master-port=7777",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SM_NUM_GPUS": "two"}, "SM_NUM_GPUS is 'two', expected a number"),
        ({"SM_HOSTS": "algo-1"}, "SM_HOSTS is no valid JSON"),
        ({"SM_HOSTS": '"algo-1"'}, "expected a JSON list"),
        ({"SM_CURRENT_HOST": "algo-9"}, "SM_CURRENT_HOST is 'algo-9', which is not in SM_HOSTS"),
    ],
)
def test_contradictory_machines(container, variables, words):
    with pytest.raises(ArgumentError, match=words):
        launcher_of(environment(container, {}, **variables))


def test_torchrun_takes_the_place_of_the_process(container, monkeypatch, command):
    class Replaced(BaseException):
        pass

    def replace(path, words, variables):
        assert (path, words[0]) == (sys.executable, sys.executable)
        assert variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == str(SHUTDOWN_TIMEOUT_S)
        assert json.loads(variables["SM_HPS"]) == {}
        raise Replaced

    monkeypatch.setattr(sagemaker.os, "execve", replace)
    with pytest.raises(Replaced):
        run(environment(container, {}, SM_NUM_GPUS=2))
    assert command.calls == []


def test_wrong_input_is_told_before_anything_is_launched(container, capsys):
    assert run(environment(container, {"command": "bench"}, SM_NUM_GPUS=2)) == 2


# --- real runs -----------------------------------------------------------------------------------


@pytest.fixture
def training_text(container):
    """The channel of a job that trains on a few kB of text."""
    folder, text = channel(container, "train"), builtin_text()
    documents = (text[start : start + 3000] for start in range(0, 24000, 3000))
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return folder


def check_delivered(base: Path) -> None:
    """Plain Hugging Face code loads the model and its tokenizer."""
    model, facts = XLNetLMHeadModel.from_pretrained(base / "model", output_loading_info=True)
    assert not facts["missing_keys"]
    assert not facts["unexpected_keys"]
    assert model.config.d_model == 32
    tokenizer = AutoTokenizer.from_pretrained(base / "model")
    ids = tokenizer("The import statement", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(ids).logits).all()
    assert json.loads((base / "output" / "data" / "metrics.json").read_text())["steps"] == STEPS
    assert (base / "output" / "data" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_job_goes_on_and_leaves_a_model(
    container, training_text, monkeypatch, capfd
):
    from xlnet_fast.train.shared.callbacks import RichProgress

    def interrupt(self, args, state, control, **_):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    variables = environment(container, TINY, SM_CHANNEL_TRAIN=training_text)
    with monkeypatch.context() as spot:
        spot.setattr(RichProgress, "on_log", interrupt)
        assert run(variables) == 128 + signal.SIGTERM
    saved = [path.name for path in (container / "checkpoints").glob("checkpoint-*")]
    assert len(saved) == 1
    assert not any((container / "model").iterdir())
    assert not (container / "output" / "failure").exists()
    capfd.readouterr()

    assert run(variables) == 0
    told = capfd.readouterr()
    assert f"resuming from {container / 'checkpoints' / saved[0]}" in told.out
    assert "step 1/" not in told.err
    assert f"step {STEPS}/{STEPS}" in told.err
    check_delivered(container)


def test_two_processes(container, training_text):
    """SageMaker's variables say two GPUs; this process turns into torchrun, two train by gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = environment(
        container,
        TINY,
        SM_CHANNEL_TRAIN=training_text,
        SM_NUM_GPUS=2,
        XLNET_FAST_SM_CHECKPOINTS=container / "checkpoints",
        MASTER_PORT=port,
        CUDA_VISIBLE_DEVICES="",
    )
    done = subprocess.run(
        [sys.executable, "-m", "xlnet_fast.cli.sagemaker", "--steps", "6"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("xlnet-fast pretrain ") == 1
    assert done.stdout.count("eval perplexity") == 1, "one process prints"
    record = json.loads((container / "checkpoints" / "pretrain.json").read_text())
    assert record["processes"] == 2
    check_delivered(container)
