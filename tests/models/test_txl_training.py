"""Training of our Transformer-XL: checkpointing, dropout, half precision, compilers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers.utils import find_labels
from txl_parity import F64, assert_tight, close, ids, model_of, recipe

from xlnet_fast.models.transfo_xl import (
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
)
from xlnet_fast.tolerance import assert_within

# The older names of these methods, which every supported version of transformers knows.
pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")

SETS = ("default", "pre_lnorm", "untie_r False", "d_embed 24, div_val 1")


def read_twice(model, **options):
    """Losses of two segments, of which the second has a memory."""
    first, second = ids("first", 2, 8), ids("second", 2, 6)
    start = model(first, labels=first, **options)
    return start.loss + model(second, labels=second, mems=start.mems, **options).loss


# --- activation checkpointing ------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", ["default", "untie_r False"])
def test_checkpointing_gives_the_same_gradients(name, dropout, use_reentrant):
    found = []
    for checkpoints in (False, True):
        model = model_of(name, dropout=dropout, dropatt=dropout / 2).train()
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
        torch.manual_seed(3)
        read_twice(model).backward()
        found.append({key: p.grad for key, p in model.named_parameters()})
    assert_tight(found[1], found[0])


def test_layers_run_again_in_the_backward_pass():
    model = model_of().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = [0, 0]
    for number, layer in enumerate(model.transformer.layers):

        def count(module, arguments, number=number):
            calls[number] += 1

        layer.pos_ff.register_forward_pre_hook(count)
    given = ids("text", 2, 6)
    loss = model(given, labels=given).loss
    assert calls == [1, 1]
    loss.backward()
    assert calls == [2, 2]
    calls[:] = [0, 0]
    model.eval()(given, labels=given).loss.backward()
    assert calls == [1, 1]


def test_checkpointing_keeps_less():
    """Bytes that autograd saves for the backward pass."""
    sizes = []
    for checkpoints in (False, True):
        model, saved = model_of(n_layer=4).train(), []
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        given = ids("text", 2, 40)
        pack = lambda x, saved=saved: saved.append(x.numel()) or x  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model.transformer(given).last_hidden_state.sum()
        sizes.append(sum(saved))
    assert sizes[1] < sizes[0] / 2


# --- dropout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"dropatt": 0.4}], ids=str)
@pytest.mark.parametrize("name", ["default", "pre_lnorm"])
def test_dropout_follows_the_seed(options, name):
    model, found = model_of(name, **options).train(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(float(read_twice(model).detach()))
    assert found[0] == found[1] != found[2]
    model.eval()
    close(read_twice(model), read_twice(model_of(name)))


def test_dropout_reaches_every_place():
    """Each of the modules with a rate is drawn from: words, positions, layers, output."""

    def loss(model):
        torch.manual_seed(5)
        return float(read_twice(model).detach())

    model = model_of().train()
    base, given = loss(model), []
    drops = [x for x in model.modules() if isinstance(x, nn.Dropout)]
    assert len(drops) == 1 + 4 * model.config.n_layer
    for module in drops:
        module.p = 0.5
        given.append(loss(model))
        module.p = 0.0
    assert all(x != base for x in given)
    assert len(set(given)) == len(given)


def test_dropped_probabilities_keep_their_mean():
    model, given = model_of(dropatt=0.25).train(), ids("text", 1, 40)
    torch.manual_seed(0)
    sums = [model(given, output_attentions=True).attentions[0].sum(-1) for _ in range(60)]
    assert float(torch.stack(sums).mean().detach()) == pytest.approx(1.0, abs=0.02)


def test_training_with_dropout_learns():
    model = model_of(dtype=torch.float32, dropout=0.1, dropatt=0.1).train()
    torch.manual_seed(0)
    steps, losses = torch.optim.Adam(model.parameters(), lr=5e-3), []
    for _ in range(25):
        steps.zero_grad()
        loss = read_twice(model)
        loss.backward()
        steps.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


# --- half precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_halves_train_with_finite_numbers(dtype):
    model = model_of(dtype=dtype, dropout=0.1).train()
    loss = read_twice(model)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == dtype, name
        assert parameter.grad.isfinite().all(), name
    assert any(bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_long_memory_in_halves(dtype):
    """bfloat16 has no 257: distances must not be rounded to it."""
    exact = model_of(mem_len=300, same_length=False)
    low = model_of(dtype=dtype, mem_len=300, same_length=False)
    with torch.no_grad():
        wanted = exact.transformer.pos_emb(400, -1, torch.zeros(1, dtype=F64))
        found = low.transformer.pos_emb(400, -1, torch.zeros(1, dtype=dtype))
    assert found.dtype == dtype
    assert float((found.double() - wanted).abs().max()) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast(name, dtype):
    """At most twice as far from float64 as the same weights in that dtype throughout."""
    exact, low, model = (
        model_of(name, working, dtype, kinks=False) for working in (F64, dtype, torch.float32)
    )
    given, results = ids("text", 3, 9), []
    for candidate, cast in ((model, True), (low, False), (exact, False)):
        with torch.autocast("cpu", dtype, enabled=cast):
            hidden = candidate.transformer(given)
            out = candidate(given, labels=given, mems=hidden.mems)
        found = recipe.gradients(candidate, "d", out.loss)
        results.append({"hidden": hidden[0].detach(), "losses": out.losses.detach()} | found)
    ours, eager, oracle = results
    for key, x in ours.items():
        assert x.isfinite().all(), key
        assert_within(x.to(dtype), eager[key].to(dtype), oracle[key], f"{name} {key}")


# --- compilers ---------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch):
    """A fresh Dynamo, and memory without poison, which a traced program would contain."""
    monkeypatch.undo()
    torch._dynamo.reset()
    yield torch.compile
    torch._dynamo.reset()


def test_a_compiled_loss_and_its_gradients(compiler):
    """Of a text with memory and padding, in one graph."""
    model = model_of(n_layer=1).train()
    compiled = compiler(model, fullgraph=True, backend="aot_eager")
    given, labels = ids("text", 2, 7), recipe.labels("labels", 2, 7)
    mask = torch.ones_like(given)
    mask[1, 5:] = 0
    mems, found = [x.clone() for x in model(given).mems], []
    for candidate in (model, compiled):
        out = candidate(given, mems=mems, attention_mask=mask, labels=labels)
        found.append(recipe.gradients(model, "d", out.loss) | {"loss": out.loss.detach()})
    assert_tight(found[1], found[0])


def test_a_compiled_text_in_segments(compiler):
    """Returned memory goes in again; all segments but the first share a program."""
    counter = CompileCounterWithBackend("eager")
    model = model_of(n_layer=1)
    compiled, mems, bare = compiler(model, fullgraph=True, backend=counter), None, None
    with torch.no_grad():
        for number in range(4):
            given = ids(f"segment {number}", 2, 5)
            a, b = compiled(given, mems=mems), model(given, mems=bare, use_cache=False)
            close(a.logits, b.logits)
            mems, bare = a.mems, list(b.mems)
    assert counter.frame_count == 2


def test_trainer_takes_labels_for_what_they_are():
    """It evaluates a batch only if all of an argument's names with "label" are in it."""
    assert find_labels(TransfoXLLMHeadModel) == ["labels"]
    assert find_labels(TransfoXLForSequenceClassification) == ["labels"]
