"""Names of the Hub: refused at once where it is out of reach, else taken from the cache.

The Hub's client would try each file for half a minute.
"""

from __future__ import annotations

import dataclasses
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tiny_finetuning import checkpoint, short

from xlnet_fast import checkpoint as checkpoints
from xlnet_fast.checkpoint import load_config, load_weights, ready_to_fetch, why_out_of_reach
from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import finetune
from xlnet_fast.train.pretraining.options import PretrainOptions
from xlnet_fast.train.pretraining.run import pretrain
from xlnet_fast.train.shared.tokenizers import load_tokenizer

NOBODY = "nobody/no-such-xlnet"


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    """The address is one that nobody listens at; the cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("urllib.request.getproxies", dict)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


def cached(source: Path, cache: Path, name: str) -> None:
    """Put a folder into a cache of the Hub, as its client would."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("1234abcd")
    (place / "snapshots").mkdir()
    (place / "snapshots" / "1234abcd").symlink_to(source)


@pytest.mark.parametrize("option", ["model", "tokenizer", "train", "eval", "test"])
def test_finetuning_with_a_name_of_the_hub(option, model, tmp_path):
    settings = dataclasses.replace(short(model, tmp_path), **{option: NOBODY})
    began = time.monotonic()
    with pytest.raises(ArgumentError, match=rf"{NOBODY} is neither .*the Hub cannot be reached"):
        finetune(settings)
    assert time.monotonic() - began < 20  # of a busy machine; each retry sleeps for seconds
    assert not settings.output.exists()


@pytest.mark.parametrize("option", ["model", "tokenizer", "dataset"])
def test_pretraining_with_a_name_of_the_hub(option, tmp_path):
    began = time.monotonic()
    with pytest.raises(ArgumentError, match=rf"{NOBODY} is neither .*the Hub cannot be reached"):
        pretrain(PretrainOptions(output=tmp_path / "out", size="tiny", **{option: NOBODY}))
    assert time.monotonic() - began < 20
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_cache_needs_no_network(model, tmp_path):
    cached(model, tmp_path / "hub", "some/xlnet")
    assert ready_to_fetch("some/xlnet", ("config.json",)) == {"local_files_only": True}
    assert load_config("some/xlnet").n_layer == 2
    assert load_weights("some/xlnet", "XLNetModel").config.n_layer == 2
    assert len(load_tokenizer("some/xlnet")) > 100


def test_behind_a_proxy_the_proxy_is_asked(monkeypatch):
    """Any answer of the Hub will do; none, or the proxy's refusal, is none."""
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy:3128"})

    def answer(error):
        def opened(*_, **__):
            raise error

        monkeypatch.setattr("urllib.request.urlopen", opened)
        return why_out_of_reach()

    assert answer(urllib.error.HTTPError("", 404, "not found", None, None)) is None
    refusal = answer(urllib.error.URLError(OSError("Tunnel connection failed: 403 Forbidden")))
    assert refusal == "the Hub cannot be reached (Tunnel connection failed: 403 Forbidden)"
    certificates = checkpoints.ssl.SSLCertVerificationError("unknown authority")
    assert answer(urllib.error.URLError(certificates)) is None
