"""explain: the table for every situation, and that it says what really runs."""

from __future__ import annotations

import importlib

import pytest
import torch
from cpu_kernels import ON_CPU, REASON, needs_kernels
from fake_gpu import gpu, triton_is_there
from hf_parity import accelerated, random_ids, tiny_model
from records import a_record, a_row
from torch import nn
from transformers import XLNetForSequenceClassification, XLNetLMHeadModel, XLNetModel

import xlnet_fast
from xlnet_fast import _extension
from xlnet_fast.ops import rel_attention as rel_attention_module
from xlnet_fast.ops._dispatch import OPS, Choice
from xlnet_fast.ops.qualification import proof
from xlnet_fast.ops.qualification.files import Found

__all__ = ["gpu", "triton_is_there"]  # fixtures

linear_module = importlib.import_module("xlnet_fast.ops.linear")
explanation_module = importlib.import_module("xlnet_fast.hf.explanation")


def rows_of(model):
    """By op and mode, the ops that have backends and no others."""
    rows = {(row.op, row.mode): row for row in xlnet_fast.explain(model).rows}
    return {key: row for key, row in rows.items() if key[0] in OPS}


def test_model_that_is_not_accelerated():
    explanation = xlnet_fast.explain(tiny_model(XLNetLMHeadModel))
    assert explanation.rows == ()
    assert "not accelerated" in str(explanation)
    assert "xlnet_fast.accelerate" in str(explanation)
    assert explanation.title == "XLNetLMHeadModel on cpu, float32"


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_op_and_mode_has_a_row(backend, dtype):
    model = tiny_model(XLNetForSequenceClassification, dtype)
    rows = rows_of(accelerated(model, backend=backend))
    assert {op for op, _ in rows} == set(OPS)
    assert {mode for op, mode in rows if op != "concat_memory"} == {"inference", "training"}
    assert ("concat_memory", "training") not in rows  # memory carries no gradient
    for row in rows.values():
        if backend == "auto":
            kernels = dtype == torch.float32 and row.op != "concat_memory"
            assert row.backend == ("cpu" if kernels and REASON is None else "sdpa")
            assert "triton" in row.reason
            assert row.backend == "cpu" or "cpu: " in row.reason
        else:
            assert (row.backend, row.reason) == (backend, "asked for by name")


def test_each_mode_asks_for_what_it_does(monkeypatch):
    """A record may call a backend right in inference and not in training."""
    asked, choice_of = {}, explanation_module.choice_of

    def spy(request, backend):
        asked[request.op, request.needs_grad] = request.features
        return choice_of(request, backend)

    monkeypatch.setattr(explanation_module, "choice_of", spy)
    rows_of(accelerated(tiny_model(XLNetModel)))
    for op in set(OPS) - {"concat_memory"}:
        assert "dropout" in asked[op, True]
        assert "dropout" not in asked[op, False]


@needs_kernels
def test_the_cpu_kernels_by_name():
    rows = rows_of(accelerated(tiny_model(XLNetForSequenceClassification), backend="cpu"))
    for (op, _), row in rows.items():
        if op == "concat_memory":  # which they lack: as auto takes it
            assert row.backend == "sdpa"
        else:
            assert (row.backend, row.reason) == ("cpu", "asked for by name")
    rows = rows_of(accelerated(tiny_model(XLNetModel, torch.float64), backend="cpu"))
    assert rows["rel_attention", "inference"].backend == "none: raises"
    assert "not float64" in rows["rel_attention", "inference"].reason


def test_linear_layers_have_a_row_on_a_cpu(monkeypatch):
    def row_of(model):
        rows = [row for row in xlnet_fast.explain(model).rows if row.op == "linear"]
        assert [row.mode for row in rows] in ([], ["inference", "training"])
        return {(row.backend, row.reason) for row in rows}

    monkeypatch.setattr(linear_module, "_chosen", Choice("cpu", "by the test"))
    model = accelerated(tiny_model(XLNetModel))
    assert row_of(model) == {("cpu", "by the test")}
    with torch.autocast("cpu"):
        assert {backend for backend, _ in row_of(model)} == {"aten"}
    assert row_of(model.double()) == {("aten", "no kernel here multiplies float64")}
    assert row_of(model.to("meta")) == set()


def test_backend_that_cannot_run_here():
    model = accelerated(tiny_model(XLNetModel), backend="triton")
    rows = rows_of(model)
    row = rows["rel_attention", "inference"]
    assert row.backend == "none: raises"
    assert "runs on cuda, not on cpu" in row.reason
    # It has every op: none goes elsewhere without a word.
    assert rows["masked_softmax", "inference"].backend == "none: raises"
    assert rows["concat_memory", "inference"].backend == "none: raises"
    with pytest.raises(xlnet_fast.BackendUnavailable, match="runs on cuda, not on cpu"):
        model(random_ids(2, 5))


def test_device_and_dtype_decide():
    model = accelerated(tiny_model(XLNetModel))
    assert "bfloat16" in xlnet_fast.explain(model.bfloat16()).title
    with torch.autocast("cpu", torch.float16):
        assert "float16" in xlnet_fast.explain(model.float()).title
    meta = rows_of(model.to("meta"))
    assert {row.backend for row in meta.values()} == {"reference"}


@pytest.mark.parametrize("backend", ON_CPU)
def test_the_table_tells_what_runs(backend, monkeypatch):
    model = accelerated(tiny_model(XLNetModel), backend=backend)
    chosen = []
    choose = rel_attention_module.__globals__["choose"]

    def spy(*args):
        chosen.append(choose(*args))
        return chosen[-1]

    monkeypatch.setitem(rel_attention_module.__globals__, "choose", spy)
    model(random_ids(2, 5))
    expected = rows_of(model)["rel_attention", "inference"]
    assert {(c.backend, c.reason) for c in chosen} == {(expected.backend, expected.reason)}


def test_the_record_that_decided_is_named(monkeypatch, request):
    record = a_record(
        [a_row(0.5, backend="cpu", operands="padded", dtype="float32", head_dim="<32")]
    )
    found = Found(record, "/a/file.json")
    monkeypatch.setattr(proof, "found_for", lambda device, index: found)
    proof._cached_verdicts.cache_clear()
    request.addfinalizer(proof._cached_verdicts.cache_clear)
    explanation = xlnet_fast.explain(accelerated(tiny_model(XLNetModel)))
    assert explanation.notes[0] == f"decided by the record /a/file.json of {record.created}"
    row = explanation.rows[0]
    assert (row.op, row.mode, row.backend) == ("rel_attention", "inference", "sdpa")
    assert "cpu: slower here (0.50 times the plain path's speed" in row.reason
    assert explanation_module._proofs(torch.device("meta")) == []
    missing = Found(None, reason="no record of it")
    monkeypatch.setattr(proof, "found_for", lambda device, index: missing)
    assert explanation_module._proofs(torch.device("cpu")) == []
    (note,) = explanation_module._proofs(torch.device("cuda", 0))
    assert note.startswith("no record of it: no GPU kernel is taken; `xlnet-fast qualify`")


def test_brackets_in_a_reason_are_printed(monkeypatch):
    reason = "RuntimeError: [enforce fail] in [/foo]"
    rows = (explanation_module.Row("op", "mode", "b", reason, reason),)
    for verbose in (False, True):
        whole = explanation_module.Explanation(
            "[verdict]", "a [title]", rows, ("[a] note",), verbose
        )
        for part in ("[verdict]", "[enforce fail]", "[/foo]", "a [title]", "[a] note"):
            assert part in str(whole)


@pytest.mark.parametrize("verbose", [False, True])
def test_printed_form(verbose):
    text = str(xlnet_fast.explain(accelerated(tiny_model(XLNetLMHeadModel)), verbose))
    for word in ("op", "backend", "why", *OPS, *(["mode"] if verbose else [])):
        assert word in text
    assert max(map(len, text.splitlines())) <= 110
    assert ("it runs on cuda, not on cpu" in text) == verbose
    assert verbose or len(text.splitlines()) <= 3 + 1 + len(OPS) + 1


@needs_kernels
def test_the_verdict_on_a_model_that_is_ready(monkeypatch):
    model = accelerated(tiny_model(XLNetModel))
    assert str(xlnet_fast.explain(model)).splitlines()[0] == "ready: fused CPU kernels; no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert xlnet_fast.explain(model).verdict == "ready: fused CPU kernels; the GPU is not used"


def on_gpu(model, monkeypatch):
    """What is explained of a model as if it were on a GPU, in bf16."""
    place = (torch.device("cuda", 0), torch.bfloat16)
    monkeypatch.setattr(explanation_module, "place_of", lambda transformer: place)
    return xlnet_fast.explain(model)


def proved(**of_training):
    """A record of Triton's attention; ``of_training``: what is otherwise in its backward pass."""
    of = {"forward": {}, "backward": of_training}
    classes = {"rel_attention": ["padded", "dropout"], "two_stream_attention": ["permuted"]}
    return a_record(
        [
            a_row(3.0, op=op, operands=name, head_dim="64", direction=direction, **of[direction])
            for op, names in classes.items()
            for name in names
            for direction in of
        ]
    )


@pytest.mark.usefixtures("triton_is_there")
def test_the_verdict_on_a_model_on_a_gpu(gpu, monkeypatch):
    model = accelerated(tiny_model(XLNetModel, d_model=128))
    unproved = on_gpu(model, monkeypatch)
    assert unproved.verdict == "GPU without a record: plain PyTorch; run `xlnet-fast qualify`"
    gpu(proved())
    ready = on_gpu(model, monkeypatch)
    assert ready.verdict == "ready: Triton kernels proved on this GPU"
    assert "triton   Triton kernels, 3.0 times plain PyTorch's speed" in str(ready)
    gpu(proved(status="failed"))
    failed = on_gpu(model, monkeypatch)
    assert failed.verdict.startswith("fault in triton: failed its qualification here: dk is wrong")
    lines = [" ".join(line.split()) for line in str(failed).splitlines()]
    wanted = "rel_attention, inference triton Triton kernels, 3.0 times plain PyTorch's speed"
    assert wanted in lines
    assert any(
        line.startswith("rel_attention, training sdpa triton: failed its qualification")
        for line in lines
    )
    assert "; 3 of its classes did not pass" in failed.notes[0]
    gpu(proved())
    proof.REVOKED["triton"] = "raised RuntimeError: no room"
    revoked = on_gpu(model, monkeypatch)
    assert revoked.verdict.startswith("fault in triton: it raised RuntimeError: no room")
    assert str(revoked).count("no room") >= 3


def test_a_fault_in_the_linear_kernels_is_in_the_verdict(monkeypatch):
    wrong = linear_module.choose_library({}, "", None, ("cpu", False, None, "failed: off by 1"))
    monkeypatch.setattr(linear_module, "_chosen", wrong)
    explanation = xlnet_fast.explain(accelerated(tiny_model(XLNetModel)))
    assert explanation.verdict.startswith("fault in cpu: failed: off by 1")


def test_the_verdict_on_a_restored_and_on_a_compiled_model():
    model = accelerated(tiny_model(XLNetModel))
    before = xlnet_fast.explain(model)
    compiled = xlnet_fast.explain(torch.compile(model))
    assert (compiled.verdict, compiled.title) == (before.verdict, "XLNetModel on cpu, float32")
    restored = str(xlnet_fast.explain(xlnet_fast.restore(model)))
    assert restored.startswith("not accelerated: Hugging Face's own code runs")
    assert len(restored.splitlines()) == 2


def test_missing_extension_is_named(monkeypatch):
    model = accelerated(tiny_model(XLNetModel))
    monkeypatch.setattr(_extension, "why_missing", lambda: "no compiler was found")
    explanation = xlnet_fast.explain(model)
    assert "no compiler was found" in " ".join(explanation.notes)
    wanted = "slower than it could be: the C++ extension is missing; run `xlnet-fast build`"
    assert explanation.verdict == wanted
    assert xlnet_fast.explain(accelerated(model, backend="sdpa")).verdict.startswith("ready: ")
    monkeypatch.setattr(_extension, "why_missing", lambda: None)
    assert xlnet_fast.explain(model).notes == ()


@pytest.mark.parametrize("wrong", [nn.Linear(2, 2), nn.Sequential()])
def test_what_is_of_no_family(wrong):
    for function in (xlnet_fast.explain, xlnet_fast.accelerate):
        message = rf"{type(wrong).__name__} contains nothing to accelerate\..*XLNetModel.*Parakeet"
        with pytest.raises(xlnet_fast.ArgumentError, match=message):
            function(wrong)
    assert not xlnet_fast.is_accelerated(wrong)
    assert xlnet_fast.restore(wrong) is wrong


@pytest.mark.parametrize("name", ["accelerate", "restore", "explain", "is_accelerated"])
@pytest.mark.parametrize("wrong", ["xlnet-base-cased", None, XLNetModel])
def test_what_is_no_module(name, wrong):
    with pytest.raises(
        xlnet_fast.ArgumentError, match=r"expected a torch.nn.Module, got (str|NoneType|type)"
    ):
        getattr(xlnet_fast, name)(wrong)
