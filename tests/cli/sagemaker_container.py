"""A training container of SageMaker, as folders and variables."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from xlnet_fast.cli import sagemaker, sagemaker_contract
from xlnet_fast.cli.sagemaker_contract import job_of


@pytest.fixture(autouse=True)
def container(tmp_path, monkeypatch):
    """Folders as SageMaker mounts them, below the test's own, and no variable from outside."""
    base = tmp_path / "ml"
    for name in ("input/config", "model", "output/data", "checkpoints"):
        (base / name).mkdir(parents=True)
    for name in list(os.environ):
        if name.startswith("SM_") or name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sagemaker, "BASE", base)
    monkeypatch.setattr(sagemaker_contract, "BASE", base)
    # A broken guard against launching twice would start processes without end.
    monkeypatch.setattr(sagemaker.os, "execve", lambda *_: pytest.fail("launched"))
    return base


def environment(base: Path, hyperparameters: dict | str | None = None, **more: object):
    """Variables of a job on one host, the hyperparameters as JSON."""
    variables = {
        "SM_MODEL_DIR": base / "model",
        "SM_OUTPUT_DIR": base / "output",
        "SM_OUTPUT_DATA_DIR": base / "output" / "data",
        "SM_NUM_GPUS": 0,
        "SM_HOSTS": '["algo-1"]',
        "SM_CURRENT_HOST": "algo-1",
        **more,
    }
    text = json.dumps(hyperparameters) if isinstance(hyperparameters, dict) else hyperparameters
    if text is not None:
        variables["SM_HPS"] = text
    return {name: str(value) for name, value in variables.items()}


def arguments(base: Path, hyperparameters: dict, **more: object) -> list[str]:
    """The command line, less what every job has."""
    found = job_of(environment(base, hyperparameters, **more)).arguments
    return [word for word in found if word not in (f"--output={base / 'checkpoints'}", "--resume")]


def channel(base: Path, name: str, *files: str) -> Path:
    """A channel's folder with files that are not empty."""
    folder = base / "input" / "data" / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("text\n")
    return folder
