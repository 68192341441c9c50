"""`xlnet-fast check`: what passes, what fails, and checkpoints that cannot be used."""

from __future__ import annotations

import copy
import functools
import json
import re
from contextlib import suppress

import pytest
import torch
from command_line import refused, run
from transformers import (
    BertConfig,
    XLNetConfig,
    XLNetForSequenceClassification,
    XLNetLMHeadModel,
    XLNetModel,
)

from xlnet_fast import check, checkpoint
from xlnet_fast.check import run as check_run
from xlnet_fast.check import table
from xlnet_fast.check import trial as trial_module
from xlnet_fast.check import xlnet as computations
from xlnet_fast.check.subject import TRAINING
from xlnet_fast.check.trial import Trial
from xlnet_fast.check.xlnet import XLNetSubject
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.ops import _dispatch

TINY = {"vocab_size": 60, "d_model": 128, "n_layer": 1, "n_head": 8, "d_inner": 32}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of a tiny XLNet."""
    path = tmp_path / "checkpoint"
    XLNetForSequenceClassification(XLNetConfig(**TINY)).save_pretrained(path)
    return path


@pytest.fixture
def one_computation(monkeypatch):
    """Only the quickest computation, in fp32."""
    one = {"memory and padding": computations._inference}
    monkeypatch.setattr(computations, "COMPUTATIONS", one)
    monkeypatch.setattr(check_run, "DTYPES", {"fp32": torch.float32})


def backends_here() -> list[str]:
    """The backends that can run on this machine's CPU; `cpu` where the extension is built."""
    names = []
    for name in _dispatch.BACKENDS:
        with suppress(BackendUnavailable):
            request = _dispatch.Request("rel_attention", "cpu", torch.float32)
            names.append(_dispatch.choose(request, name).backend)
    assert {"sdpa", "reference"} <= set(names)
    return names


def test_check_passes_on_a_checkpoint(folder):
    result = run("check", folder)
    assert result.exit_code == 0, result.output
    assert "XLNetForSequenceClassification" in result.stdout
    for word in ("memory and padding", "two streams", "training step", "bf16", "sdpa"):
        assert word in result.stdout
    # Three computations in two dtypes.
    assert f"{6 * len(backends_here())} passed, 0 failed" in result.stdout
    assert "triton on cpu was not run: it runs on cuda" in result.stdout


def test_check_says_on_stderr_what_it_is_at(folder, monkeypatch, one_computation):
    """Each part that begins, and a batch of it that lasts; stdout has the result alone."""
    monkeypatch.setattr(table, "Lines", functools.partial(table.Lines, quiet_s=0.01))
    monkeypatch.setattr(check_run, "DTYPES", {"fp32": torch.float32, "bf16": torch.bfloat16})
    result = run("check", folder)
    lines = result.stderr.splitlines()
    begins = [line for line in lines if "so far" not in line]
    assert begins == [f"checking memory and padding, {dtype}" for dtype in ("fp32", "bf16")]
    lasting = r"checking memory and padding, (fp32|bf16)(, batch [23] of 3)?, \d+ s so far"
    assert all(re.fullmatch(lasting, line) for line in lines if line not in begins)
    assert len(lines) > len(begins)
    assert "checking" not in result.stdout


def test_check_fails_on_a_wrong_backend(folder, monkeypatch, one_computation):
    """A bias that is off in one backend is seen, told and answered with 1."""
    right = trial_module.accelerate

    def wrong(model, backend):
        if backend == "sdpa":
            with torch.no_grad():
                computations.trunk_of(model).layer[0].rel_attn.r_r_bias.add_(0.3)
        return right(model, backend)

    monkeypatch.setattr(trial_module, "accelerate", wrong)
    result = run("check", folder)
    assert result.exit_code == 1
    assert "FAILED: memory and padding, cpu, fp32, sdpa" in result.stdout
    assert f"{len(backends_here()) - 1} passed, 1 failed" in result.stdout


def test_check_fails_on_a_backend_that_raises(folder, monkeypatch, one_computation):
    def raising(model, backend):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(trial_module, "accelerate", raising)
    result = run("check", folder)
    assert result.exit_code == 1
    assert "raised RuntimeError: out of luck" in result.stdout


def test_check_fails_on_missing_tensors(monkeypatch):
    model = XLNetModel(XLNetConfig(**TINY))
    trial = Trial("memory and padding", "cpu", "fp32", "sdpa", XLNetSubject(model))
    one = torch.ones(2)
    trial.run(lambda *_: {}, model, 0, {"x": one}, {"x": one.double()})
    assert trial.verdict().status == "FAILED"
    assert "['x']" in trial.verdict().reason


def test_check_keeps_the_worst_batch():
    model = XLNetModel(XLNetConfig(**TINY))
    trial = Trial("memory and padding", "cpu", "fp32", "sdpa", XLNetSubject(model))
    exact = torch.ones(2, dtype=torch.float64)
    for error in (0.0, 0.5, 0.0):
        eager, actual = {"x": exact.float()}, {"x": exact.float() + error}
        trial.run(lambda *_, given=actual: given, model, 0, eager, {"x": exact})
    verdict = trial.verdict()
    assert (verdict.status, verdict.worst, verdict.error) == ("FAILED", "x", 0.5)


def alike(seed: int = 1) -> XLNetLMHeadModel:
    """A model whose hidden states are nearly alike, as those of a deep one that was trained.

    What the softmax's gradient subtracts is then almost all of it.
    """
    torch.manual_seed(seed)
    shape = {"vocab_size": 60, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32}
    model = XLNetLMHeadModel(XLNetConfig(**shape, initializer_range=0.1, dropout=0.0))
    with torch.no_grad():
        model.transformer.word_embedding.weight.add_(3 * torch.randn(32))
        for layer in model.transformer.layer:
            layer.ff.layer_norm.bias.normal_(std=3.0)
    return model


@pytest.fixture
def a_short_training_step(monkeypatch):
    """Only the gradients, of few batches, and how many draws of rounding are asked for."""
    monkeypatch.setattr(computations, "COMPUTATIONS", {TRAINING: computations._training})
    monkeypatch.setattr(XLNetSubject, "training_batches", 4)
    asked = []

    def counted(*arguments):
        asked.append(arguments)
        return more(*arguments)

    more = check_run._more
    monkeypatch.setattr(check_run, "_more", counted)
    return asked


def test_terms_that_cancel_are_no_fault(a_short_training_step, monkeypatch):
    """Equally good codes differ by more than twice there; the plain rule took that for faults."""
    verdicts = list(check.check_model(alike()))
    assert {v.status for v in verdicts if v.backend in backends_here()} == {"ok"}, verdicts
    assert sum(v.cancelling for v in verdicts) >= 1 or not a_short_training_step
    assert len(a_short_training_step) <= 2 * 4  # each batch in two dtypes, for all backends

    monkeypatch.setattr(check_run, "_more", lambda *_: {})  # nothing is added
    plain = (v.status for seed in (1, 0, 2) for v in check.check_model(alike(seed)))
    assert any(status == "FAILED" for status in plain)  # of one seed, it may be inside by luck


@pytest.fixture(scope="module")
def steps_of_alike():
    """Hugging Face's results, the exact ones and ours of each batch, and what rounding adds."""
    model = alike()
    double = copy.deepcopy(model).double()
    ours = trial_module.accelerate(copy.deepcopy(model), "sdpa")
    steps = [
        [computations._training(m, batch) for m in (model, double, ours)] for batch in range(3)
    ]
    more = functools.partial(check_run._more, computations._training, double, torch.float32)
    return model, steps, functools.cache(more)


def judged(steps_of_alike, key=None, fault=None):
    """A verdict on our results, with a fault in one tensor; and that of the plain rule."""
    model, steps, more = steps_of_alike
    trial = Trial(TRAINING, "cpu", "fp32", "sdpa", XLNetSubject(model))
    for eager, exact, ours in steps:
        results = ours if key is None else ours | {key: fault(ours[key])}
        trial.run(lambda *_, given=results: given, model, 0, eager, exact)
    plain = trial.verdict()
    trial.judge_again(more)
    return trial.verdict(), plain


def without_a_head(gradient):
    """The first head's share of a projection (H, N, D), a bias (N, D) or segments (2, N, D)."""
    wrong = gradient.clone()
    wrong.select(-2, 0).zero_()
    return wrong


def one_element(gradient):
    """The sign of one, whose size is nearest to a tenth of the largest."""
    wrong = gradient.clone().flatten()
    wrong[(wrong.abs() - wrong.abs().max() / 10).abs().argmin()] *= -1
    return wrong.view_as(gradient)


def one_row(gradient):
    wrong = gradient.clone()
    wrong[0] = gradient[-1]
    return wrong


def off_by_a_thousandth(gradient):
    return gradient * 1.001


FAULTS = (without_a_head, one_element, one_row, torch.neg)


def test_steps_of_alike_are_right(steps_of_alike):
    assert judged(steps_of_alike)[0].status == "ok"


EVERYWHERE = [
    (name, fault)
    for name in ("q", "k", "v", "o", "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")
    for fault in FAULTS
]
PRECISELY = [(name, off_by_a_thousandth) for name in ("v", "o")]  # of q it is HF's own error


@pytest.mark.parametrize(("name", "fault"), EVERYWHERE + PRECISELY)
def test_faults_are_found_where_terms_cancel(name, fault, steps_of_alike):
    """In one gradient of one layer, though its bound is that of what cancelled in it."""
    key = f"d layer.1.rel_attn.{name}"
    verdict, plain = judged(steps_of_alike, key, fault)
    assert plain.status == "FAILED"
    assert verdict.status == "FAILED"
    assert key in verdict.reason


def test_what_is_not_finite_asks_for_no_rounding():
    model = XLNetModel(XLNetConfig(**TINY))
    trial = Trial("memory and padding", "cpu", "fp32", "sdpa", XLNetSubject(model))
    one = torch.ones(2)
    trial.run(lambda *_: {"x": one / 0}, model, 0, {"x": one}, {"x": one.double()})
    trial.judge_again(lambda _: pytest.fail("asked"))
    assert trial.verdict().status == "FAILED"


def test_rounding_is_asked_of_the_worst_batch_first():
    """And of no more batches than are needed; nothing is, where all is inside."""
    model = XLNetModel(XLNetConfig(**TINY))
    exact = torch.ones(2, dtype=torch.float64)
    for error, needed in ((0.0, []), (0.5, [1]), (2.0, [1, 2, 0])):
        trial = Trial("memory and padding", "cpu", "fp32", "sdpa", XLNetSubject(model))
        for share in (0.25, 1.0, 0.5):
            actual = {"x": exact.float() + share * error}
            trial.run(lambda *_, a=actual: a, model, 0, {"x": exact.float()}, {"x": exact})
        asked = []
        trial.judge_again(lambda batch, to=asked: to.append(batch) or {"x": 0.6})
        assert asked == needed
        assert trial.verdict().status == ("FAILED" if error > 0.6 else "ok")


@pytest.mark.parametrize("name", checkpoint.CLASSES)
def test_every_class_has_a_loss_to_train_on(name):
    model = getattr(__import__("transformers"), name)(XLNetConfig(**TINY, dropout=0.0))
    results = computations._training(model, 0)
    assert "d layer.0.rel_attn.r" in results
    assert all(bool(torch.isfinite(x).all()) for x in results.values())
    assert float(results["d layer.0.rel_attn.r"].abs().max()) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"attn_type": "uni"},
        {"bi_data": True},
        {"mem_len": 8, "reuse_len": 16, "clamp_len": 5},
        {"num_labels": 1},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ],
    ids=str,
)
def test_check_takes_every_kind_of_model(options, monkeypatch):
    monkeypatch.setattr(check_run, "DTYPES", {"fp32": torch.float32})
    monkeypatch.setattr(check_run, "BACKENDS", ("sdpa",))
    model = XLNetForSequenceClassification(
        XLNetConfig(**TINY | {"n_head": 32}, **options, initializer_range=0.1, dropout=0.1)
    )
    verdicts = list(check.check_model(model))
    assert [v.status for v in verdicts] == ["ok"] * 3, verdicts


# --- models that cannot be used ------------------------------------------------------------------


def damage_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_header(folder):
    (folder / "model.safetensors").write_bytes(b"not weights")


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def remove_config(folder):
    (folder / "config.json").unlink()


def damage_config(folder):
    (folder / "config.json").write_text("{")


def empty_config(folder):
    (folder / "config.json").write_text("{}")


def other_model(folder):
    BertConfig(hidden_size=8, num_attention_heads=2).save_pretrained(folder)


def more_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 2}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_weights, "damaged or cut short"),
        (damage_header, "damaged or cut short"),
        (remove_weights, "no file named"),
        (remove_config, "holds no config.json"),
        (damage_config, "not a valid JSON"),
        (empty_config, "model_type"),
        (other_model, "is a bert model: nothing in it is accelerated"),
        (more_layers, "lacks 17 of the"),
    ],
)
def test_unreadable_checkpoints(folder, harm, words):
    harm(folder)
    assert words in refused(run("check", folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./no-such-folder", "does not exist"),
        ("/no/such/folder", "does not exist"),
        (__file__, "is a file; give the checkpoint folder"),
        ("XLNetForEverything", "is no class of XLNet; they are XLNetModel"),
        ("nobody/no-such-xlnet", "HF_HUB_OFFLINE forbids to fetch it"),
    ],
)
@pytest.mark.parametrize("command", [["check"], ["bench", "--model"]], ids=["check", "bench"])
def test_models_that_are_not_there(command, name, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert words in refused(run(*command, name))


def test_a_hub_id_without_network(monkeypatch):
    """The address is one that nobody listens at; the client's own retries are not waited for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(ArgumentError, match=r"the Hub cannot be reached \(.+\)"):
        checkpoint.ready_to_fetch("nobody/no-such-xlnet", ("config.json",))
