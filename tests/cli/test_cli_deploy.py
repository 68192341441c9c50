"""The commands: what they refuse before anybody is asked, and a job's description by files."""

from __future__ import annotations

import json
from pathlib import Path

import deployable
import pytest
from command_line import refused, run
from sagemaker_container import container

from xlnet_fast.cli.sagemaker_contract import job_of
from xlnet_fast.cli.sagemaker_files import completed
from xlnet_fast.errors import ArgumentError

__all__ = ["container"]  # a fixture


def training(*more: str):
    given = deployable.job()
    return run(
        "train", "sagemaker", "--name", given.name, "--role", given.role, "--image", given.image,
        "--s3", given.s3, "--instance", given.instance, "--dry-run", *more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("finetune",), "finetune has no training data"),
        (("finetune", "--hyperparameter", "stepps=3"), "finetune has no option stepps"),
        (("pretrain", "--hyperparameter", "train=x"), "pretrain has no option train"),
        (("pretrain", "--channel", "data=s3://bucket/x"), "pretrain reads no channel data"),
        (("evaluate",), "command is 'evaluate'"),
        ((), "missing argument"),
    ],
)
def test_a_job_that_would_fail_is_refused_before_it_costs_anything(more, told):
    assert told in refused(training(*more))


@pytest.mark.parametrize(
    "more",
    [
        ("pretrain",),
        ("finetune", "--channel", "train=s3://bucket/x", "--hyperparameter", "learning-rate=1e-4"),
        ("finetune", "--hyperparameter", 'train="glue:sst2@train"'),
    ],
)
def test_a_job_that_can_run(more):
    result = training(*more)
    assert result.exit_code == 0, result.output
    assert "Nothing was done" in result.stderr


def test_a_deployment_is_planned(tmp_path):
    folder = deployable.model(tmp_path / "model")
    given = deployable.deployment(folder)
    words = ["--model", folder, "--name", given.name, "--role", given.role, "--image", given.image]
    words += ["--s3", given.s3, "--serverless", "--dry-run"]
    result = run("deploy", "sagemaker", *words)
    assert result.exit_code == 0, result.output
    assert "Deployment reviews, serverless:" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["deploy", "train"])
def test_the_bare_word_lists_its_commands(name):
    result = run(name)
    assert result.exit_code == 0
    assert "sagemaker" in result.stdout
    assert "no such command 'x'" in refused(run(name, "x"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("delete", "under_score"), "name is 'under_score'"),
        (("invoke", "x", "--input", "none.json"), "cannot be read: No such file"),
        (("invoke", "x", "--input", "none.xml"), "give --content-type"),
        (("invoke", "x", "--input", "-"), "the standard input is empty"),
        (("sagemaker",), "missing option"),
    ],
)
def test_what_is_refused_before_anybody_is_asked(words, told):
    assert told in refused(run("deploy", *words))


# --- the files of a job, where SageMaker's toolkit does not run ----------------------------------


def described(base: Path, **files: object) -> dict[str, str]:
    config = base / "input" / "config"
    for name, content in files.items():
        (config / f"{name}.json").write_text(json.dumps(content))
    return completed(
        {"SM_MODEL_DIR": str(base / "model"), "SM_INPUT_CONFIG_DIR": str(config)}, base
    )


def test_the_files_of_a_job_make_the_same_command_as_the_toolkit_s_variables(container):
    data = container / "input" / "data" / "train"
    data.mkdir(parents=True)
    (data / "a.csv").write_text("text,label\n")
    environment = described(
        container,
        hyperparameters={"command": "finetune", "task": "text-classification", "steps": "3"},
        inputdataconfig={"train": {"TrainingInputMode": "File"}},
        resourceconfig={"current_host": "algo-1", "hosts": ["algo-1"]},
    )
    job = job_of(environment)
    assert job.arguments == [
        "finetune", "--task=text-classification", "--steps=3", f"--train={data / 'a.csv'}",
        f"--output={container / 'checkpoints'}", "--resume",
    ]  # fmt: skip
    assert environment["SM_HOSTS"] == '["algo-1"]'
    assert environment["SM_NUM_GPUS"].isdecimal()
    assert environment["SM_OUTPUT_DATA_DIR"] == str(container / "output" / "data")


def test_variables_win_over_files(container):
    files = {"inputdataconfig": {"test": {}}, "resourceconfig": {"hosts": ["a"]}}
    config = container / "input" / "config"
    for name, content in files.items():
        (config / f"{name}.json").write_text(json.dumps(content))
    given = {"SM_CHANNEL_TRAIN": "/data", "SM_HOSTS": '["b"]', "SM_NUM_GPUS": "2"}
    found = completed(given, container)
    assert found.items() >= given.items()
    assert "SM_CHANNEL_TEST" not in found


def test_no_files_change_nothing(container):
    assert completed({"A": "b"}, container) == {"A": "b"}


@pytest.mark.parametrize("text", ["[1]", "{", "\xff"])
def test_a_damaged_file_is_told(container, text):
    file = container / "input" / "config" / "resourceconfig.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ArgumentError, match=r"resourceconfig\.json"):
        completed({}, container)
