"""What the variables of a SageMaker job come to: options, channels, folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sagemaker_container import arguments, channel, container, environment

from xlnet_fast.cli import sagemaker_contract
from xlnet_fast.cli.sagemaker_contract import job_of
from xlnet_fast.errors import ArgumentError

__all__ = ["container"]  # a fixture


# --- hyperparameters -----------------------------------------------------------------------------


def test_hyperparameters_become_options(container):
    given = {
        "steps": "10", "learning-rate": "1e-4", "weight_decay": 0.1, "precision": '"bf16"',
        "size": "tiny", "bi_data": True, "whole-words": "true", "accelerate": "false",
        "split_sentences": "False", "text": '["a.txt", "b.txt"]', "eval_text": ["c.txt"],
        "model": None, "tokenizer": "null",
    }  # fmt: skip
    assert arguments(container, given) == [
        "pretrain", "--steps=10", "--learning-rate=1e-4", "--weight-decay=0.1", "--precision=bf16",
        "--size=tiny", "--bi-data", "--whole-words", "--no-accelerate", "--no-split-sentences",
        "--text=a.txt", "--text=b.txt", "--eval-text=c.txt",
    ]  # fmt: skip


def test_a_mapping_is_given_role_by_role(container):
    given = {"command": "finetune", "train": "t.csv", "column": '{"text": "review", "label": "y"}'}
    assert arguments(container, given) == [
        "finetune", "--train=t.csv", "--column=text=review", "--column=label=y",
    ]  # fmt: skip


def test_the_file_of_hyperparameters_is_read_without_the_variable(container, tmp_path):
    raw = {
        "steps": "5", "size": '"tiny"', "sagemaker_program": '"train.py"',
        "sagemaker_job_name": '"job"', "_tuning_objective_metric": "eval_loss",
    }  # fmt: skip
    (container / "input" / "config" / "hyperparameters.json").write_text(json.dumps(raw))
    assert job_of(environment(container)).arguments[:3] == ["pretrain", "--steps=5", "--size=tiny"]

    (tmp_path / "hyperparameters.json").write_text('{"steps": "7"}')
    elsewhere = environment(container, SM_INPUT_CONFIG_DIR=tmp_path)
    assert job_of(elsewhere).arguments[:2] == ["pretrain", "--steps=7"]


@pytest.mark.parametrize(
    ("hyperparameters", "words"),
    [
        (None, r"no hyperparameters: SM_HPS is not set, and .*hyperparameters\.json cannot be"),
        ("{", "SM_HPS is no valid JSON"),
        ("[1]", r"SM_HPS is '\[1\]', expected a JSON dict"),
        ({"command": "bench"}, "command is 'bench', expected one of: pretrain, finetune"),
        ({"steps": [1, 2]}, r"the hyperparameter steps is \[1, 2\], expected a single value"),
        ({"size": {"a": 1}}, "the hyperparameter size is .* expected a single value"),
    ],
)
def test_wrong_hyperparameters(container, hyperparameters, words):
    with pytest.raises(ArgumentError, match=words):
        job_of(environment(container, hyperparameters))


# --- channels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("TRAIN", "text"),
        ("TRAINING", "text"),
        ("TEXT", "text"),
        ("EVAL", "eval-text"),
        ("VALIDATION", "eval-text"),
        ("TEST", "eval-text"),
        ("MODEL", "model"),
        ("TOKENIZER", "tokenizer"),
    ],
)
def test_channels_of_pretraining(container, name, option):
    assert arguments(container, {}, **{f"SM_CHANNEL_{name}": "/data"}) == [
        "pretrain",
        f"--{option}=/data",
    ]


def test_channels_of_the_same_kind_are_all_read(container):
    channels = {"SM_CHANNEL_TRAIN": "/a", "SM_CHANNEL_TEXT": "/b"}
    assert arguments(container, {}, **channels) == ["pretrain", "--text=/a", "--text=/b"]


def test_hyperparameters_win_over_channels(container):
    train, model = channel(container, "train", "a.txt", "b.txt"), channel(container, "model", "x/c")
    channels = {"SM_CHANNEL_TRAIN": train, "SM_CHANNEL_MODEL": model}
    given = {"text": ["a.txt", "/elsewhere.txt"], "model": "x"}
    assert arguments(container, given, **channels) == [
        "pretrain", f"--text={train / 'a.txt'}", "--text=/elsewhere.txt", f"--model={model / 'x'}",
    ]  # fmt: skip
    given = {"dataset": "wikitext", "model": "org/name"}
    assert arguments(container, given, **channels) == [
        "pretrain", "--dataset=wikitext", "--model=org/name",
    ]  # fmt: skip


def test_notes_on_what_is_used(container):
    job = job_of(environment(container, {}, SM_CHANNEL_CODE="/code"))
    assert job.notes == [
        "pretrain does not use the channel CODE",
        "there is no channel named train or text: pretraining on the built-in text",
    ]
    assert job_of(environment(container, {}, SM_CHANNEL_TEXT="/text")).notes == []


def test_channels_of_finetuning(container):
    train = channel(container, "training", "data.jsonl", ".hidden.csv", "README.md")
    evaluation, test = (
        channel(container, "validation", "e.csv"),
        channel(container, "test", "t.tsv"),
    )
    channels = {
        "SM_CHANNEL_TRAINING": train,
        "SM_CHANNEL_VALIDATION": evaluation,
        "SM_CHANNEL_TEST": test,
        "SM_CHANNEL_MODEL": "/model",
        "SM_CHANNEL_TOKENIZER": "/tokenizer",
    }
    given = {"command": "finetune", "task": "text-classification"}
    assert arguments(container, given, **channels) == [
        "finetune", "--task=text-classification", f"--train={train / 'data.jsonl'}",
        f"--eval={evaluation / 'e.csv'}", f"--test={test / 't.tsv'}", "--model=/model",
        "--tokenizer=/tokenizer",
    ]  # fmt: skip


def test_problems_and_files_of_words(container):
    """Several columns of labels as a list; a CoNLL file where the task is one of words."""
    train = channel(container, "train", "eng.train", "README.md")
    given = {"command": "finetune", "task": "token-classification"}
    assert arguments(container, given, SM_CHANNEL_TRAIN=train)[2] == f"--train={train}/eng.train"
    data = channel(container, "training", "data.csv", "notes.txt")
    given |= {"problem_type": "multi-label", "column": {"label": ["mad", "sad"]}, "threshold": 0.3}
    assert arguments(container, given, SM_CHANNEL_TRAIN=data)[2:6] == [
        "--problem-type=multi-label", "--column=label=mad,sad", "--threshold=0.3",
        f"--train={data / 'data.csv'}",
    ]  # fmt: skip
    with pytest.raises(ArgumentError, match=r"holds no \.csv"):
        job_of(environment(container, {"command": "finetune"}, SM_CHANNEL_TRAIN=train))


def test_a_hyperparameter_names_the_file_in_a_channel(container):
    train = channel(container, "train", "a.csv", "b.csv")
    given = {"command": "finetune", "train": "b.csv"}
    assert arguments(container, given, SM_CHANNEL_TRAIN=train) == [
        "finetune",
        f"--train={train / 'b.csv'}",
    ]


@pytest.mark.parametrize("file", ["state.json", "dataset_dict.json"])
def test_a_channel_may_be_a_saved_data_set(container, file):
    train = channel(container, "train", file, "dataset_info.json", "data-00000.arrow")
    found = arguments(container, {"command": "finetune"}, SM_CHANNEL_TRAIN=train)
    assert found == ["finetune", f"--train={train}"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["b.csv", "a.json"], "holds a.json, b.csv; expected one data file"),
        (["notes.txt"], r"holds no \.csv, .* file; expected one data file"),
        ([], r"holds no \.csv"),
    ],
)
def test_not_one_data_file(container, files, words):
    train = channel(container, "train", *files)
    with pytest.raises(ArgumentError, match=words):
        job_of(environment(container, {"command": "finetune"}, SM_CHANNEL_TRAIN=train))


def test_finetuning_without_training_data(container):
    with pytest.raises(ArgumentError, match="no training data: give a channel named train"):
        job_of(environment(container, {"command": "finetune"}, SM_CHANNEL_TEXT="/text"))


def test_two_channels_for_one_file(container):
    channels = {"SM_CHANNEL_TRAIN": "/a", "SM_CHANNEL_TRAINING": "/b"}
    with pytest.raises(ArgumentError, match="the channels TRAIN and TRAINING mean the same"):
        job_of(environment(container, {"command": "finetune"}, **channels))


def test_data_files_are_those_of_finetuning():
    from xlnet_fast.train.finetune.data import SUFFIXES

    assert sorted(sagemaker_contract.DATA_SUFFIXES) == sorted(SUFFIXES)


# --- folders -------------------------------------------------------------------------------------


def test_the_folder_of_the_run(container, tmp_path):
    elsewhere = {"XLNET_FAST_SM_CHECKPOINTS": tmp_path / "new"}
    assert job_of(environment(container, {"output": "/run"}, **elsewhere)).output == Path("/run")
    assert job_of(environment(container, {}, **elsewhere)).output == tmp_path / "new"
    plain = environment(container, {})
    assert job_of(plain).output == container / "checkpoints"
    (container / "checkpoints").rmdir()
    assert job_of(plain).output == container / "output" / "data"
    del plain["SM_OUTPUT_DATA_DIR"]
    with pytest.raises(ArgumentError, match="no folder for the run: give the hyperparameter out"):
        job_of(plain)


def test_a_run_is_resumed_unless_told_otherwise(container):
    def words(given: dict) -> list[str]:
        return [w for w in job_of(environment(container, given)).arguments if "--o" not in w][1:]

    assert words({}) == ["--resume"]
    assert words({"overwrite": False}) == ["--no-overwrite", "--resume"]
    assert words({"resume": False}) == ["--no-resume"]
    assert "--resume" not in words({"overwrite": True})


def test_the_folder_of_the_model(container):
    variables = environment(container, {})
    del variables["SM_MODEL_DIR"]
    assert job_of(variables).model_folder == container / "model"
    (container / "model").rmdir()
    with pytest.raises(ArgumentError, match=r"SM_MODEL_DIR is not set and .*model does not exist"):
        job_of(variables)


def test_several_hosts_need_a_folder_that_they_share(container):
    hosts = {"SM_HOSTS": '["algo-1", "algo-2"]'}
    with pytest.raises(ArgumentError, match="a job on 2 hosts needs the hyperparameter output"):
        job_of(environment(container, {}, **hosts))
    assert job_of(environment(container, {"output": "/fsx/run"}, **hosts)).output.name == "run"
