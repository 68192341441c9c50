"""The timing of whole models on a TPU, tried on the CPU: rows, errors, refusals."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torchax", reason="models come to JAX by torchax: pip install xlnet-fast[tpu]")

import jax.numpy as jnp
import torch
from tpu_interpreted import ON_TPU

from benchmarks.cases.shapes import Geometry
from benchmarks.micro import tpu_compile, tpu_speed

SMALL = Geometry("small", 1, 32, 2, 32, vocab_size=1100)
OPTIONS = ("--cpu", "--shape", "2x24", "--layers", "1", "--dtype", "fp32", "--rounds", "2")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tpu_compile, "BASE", SMALL)
    monkeypatch.setattr(tpu_speed, "BASE", SMALL)


def test_each_provider_is_timed_and_is_hugging_faces_model(small, tmp_path, capsys):
    file = tmp_path / "speed.json"
    assert tpu_speed.main([*OPTIONS, "--out", str(file)]) == 0
    found = json.loads(file.read_text())
    assert "no time of a TPU" in found["note"]
    rows = {row["provider"]: row for row in found["rows"]}
    assert list(rows) == ["hf", "reference", "pallas"]
    assert rows["hf"]["times_as_fast"] == 1
    for row in rows.values():
        assert row["error"] < 1e-5
        assert row["rounds"] == 2
        assert 0 < row["time_p20_us"] <= row["time_us"] <= row["time_p80_us"]
    assert "2x24 fp32, 1 layers, forward" in capsys.readouterr().out


def test_an_error_is_seen_where_there_are_tokens_alone():
    exact = torch.ones(1, 8, 2)
    result = jnp.ones((3, 8, 2))
    assert tpu_speed.error_of(result.at[-1, :2].set(9).at[0].set(9), exact) == 0
    assert tpu_speed.error_of(result.at[-1, 2, 1].set(1.5), exact) == 0.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--rounds", "0"), "--rounds is 0, expected at least 1"),
        (("--shape", "8"), "is not BATCHxLENGTH"),
    ],
)
def test_what_cannot_be_is_refused(given, said, capsys):
    with pytest.raises(SystemExit):
        tpu_speed.main(given)
    assert said in capsys.readouterr().err


@pytest.mark.skipif(ON_TPU, reason="there is a TPU")
def test_without_a_tpu_it_says_how_to_try_it(capsys):
    with pytest.raises(SystemExit):
        tpu_speed.main([])
    assert "not on a TPU; `--cpu` tries the command without one" in capsys.readouterr().err
