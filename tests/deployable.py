"""A folder that can be deployed, options that make a deployment of it, and what AWS may answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from xlnet_fast.deploy.deployment import DeployOptions
from xlnet_fast.deploy.training_options import TrainingOptions

ACCOUNT, REGION, BUCKET = "123456789012", "eu-central-1", "our-models"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/sagemaker"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/xlnet-fast:1"


def model(folder: Path, architecture: str = "XLNetForSequenceClassification") -> Path:
    """A checkpoint whose weights nobody computes with."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "xlnet", "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "spiece.model").write_bytes(b"pieces")
    save_file({"weight": np.arange(12, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def deployment(folder: Path | str, **changes: Any) -> DeployOptions:
    """A real-time endpoint of it."""
    given: dict[str, Any] = {
        "model": str(folder), "name": "reviews", "role": ROLE, "image": IMAGE,
        "s3": f"s3://{BUCKET}/deployments", "instance": "ml.c5.xlarge",
    }  # fmt: skip
    return DeployOptions(**{**given, **changes})


def serverless(folder: Path | str, **changes: Any) -> DeployOptions:
    """A serverless endpoint of it."""
    return deployment(folder, **{"instance": None, "serverless": True, **changes})


def job(**changes: Any) -> TrainingOptions:
    """A fine-tuning on data that is in S3."""
    given: dict[str, Any] = {
        "command": "finetune", "name": "reviews", "role": ROLE, "image": IMAGE,
        "s3": f"s3://{BUCKET}/training", "instance": "ml.g6.xlarge",
        "channel": (f"train=s3://{BUCKET}/data",),
        "hyperparameter": ("task=text-classification", "learning-rate=1e-5"),
    }  # fmt: skip
    return TrainingOptions(**{**given, **changes})


class ClientError(Exception):
    """As botocore's, which this environment may lack."""

    def __init__(self, code: str, message: str = "No", status: int = 400) -> None:
        super().__init__(message)
        self.response = {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }
