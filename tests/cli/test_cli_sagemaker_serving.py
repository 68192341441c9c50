"""How a SageMaker endpoint's container is told what to serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from xlnet_fast.cli import sagemaker_serving
from xlnet_fast.cli.sagemaker_serving import options_of, run
from xlnet_fast.errors import ArgumentError


def test_what_sagemaker_says(tmp_path):
    options = options_of({"SM_MODEL_DIR": str(tmp_path), "PATH": "/bin"})
    assert (options.models, options.host, options.port) == (str(tmp_path), "0.0.0.0", 8080)
    assert options.load_from is None
    assert options.body_bytes == 6 << 20
    assert options_of({}).models == "/opt/ml/model"
    told = {
        "SAGEMAKER_BIND_TO_PORT": "9090",
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "30",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT": "60",
    }
    options = options_of(told)
    assert (options.port, options.log_level, options.timeout) == (9090, "warning", 60.0)


def test_options_of_the_service():
    options = options_of(
        {
            "XLNET_FAST_SERVE_MAX_LENGTH": "128",
            "XLNET_FAST_SERVE_NAME": "reviews",
            "XLNET_FAST_SERVE_DRAIN": "2.5",
            "XLNET_FAST_SERVE_ALLOW_PICKLE": "True",
            "XLNET_FAST_SERVE_TOKENS_FILE": "/run/tokens",
            "XLNET_FAST_SERVE_THREADS": "2",
            "XLNET_FAST_SERVE_PORT": "7000",
            "SAGEMAKER_BIND_TO_PORT": "9090",
        }
    )
    assert (options.max_length, options.name, options.drain) == (128, "reviews", 2.5)
    assert (options.allow_pickle, options.tokens_file) == (True, Path("/run/tokens"))
    assert (options.threads, options.port) == (2, 7000)


def test_several_models(tmp_path):
    root = tmp_path / "models"
    told = {"SAGEMAKER_MULTI_MODEL": "true", "XLNET_FAST_SERVE_LOAD_FROM": str(root)}
    options = options_of(told)
    assert options.load_from == root
    assert root.is_dir()
    assert options.models != str(root)
    assert list(Path(options.models).iterdir()) == []
    Path(options.models).rmdir()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"XLNET_FAST_SERVE_SPEED": "1"}, "names no option of xlnet-fast serve"),
        ({"XLNET_FAST_SERVE_PORT": "http"}, "'http', expected a whole number"),
        ({"XLNET_FAST_SERVE_ALLOW_PICKLE": "maybe"}, "expected true or false"),
        ({"SAGEMAKER_MULTI_MODEL": "2"}, "expected true or false"),
        ({"SAGEMAKER_BIND_TO_PORT": ""}, "expected a whole number"),
        (
            {"SAGEMAKER_MULTI_MODEL": "1", "XLNET_FAST_SERVE_LOAD_FROM": "/dev/null/models"},
            "no folder for models",
        ),
    ],
)
def test_what_cannot_be(told, words):
    with pytest.raises(ArgumentError, match=words):
        options_of(told)


def test_arguments_and_exit_codes(monkeypatch, capsys):
    served = []
    monkeypatch.setattr(sagemaker_serving, "run_serve", served.append)
    assert run(["serve"], {"SM_MODEL_DIR": "a"}) == 0
    assert run([], {"SM_MODEL_DIR": "b"}) == 0
    assert [options.models for options in served] == ["a", "b"]
    assert run(["train"], {}) == 2
    assert "expected serve" in capsys.readouterr().err
    assert run(["serve"], {"XLNET_FAST_SERVE_X": "1"}) == 2
    assert capsys.readouterr().err.startswith("error: XLNET_FAST_SERVE_X names no option")
