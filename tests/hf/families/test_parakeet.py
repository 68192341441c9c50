"""Parakeet: the encoder, its heads and what tools do with it, against Hugging Face's "sdpa"."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from family_parity import accelerated, compare, in_float64
from torch import nn
from transducers import (
    LAYERS,
    PARAKEET,
    VOCABULARY,
    ctc,
    parakeet,
    several_sounds,
    sounds,
    transducer,
)
from transformers import ParakeetEncoder
from transformers.models.parakeet import modeling_parakeet as theirs

import xlnet_fast
from xlnet_fast.hf.adoption import original_class
from xlnet_fast.hf.families import parakeet as ours
from xlnet_fast.nn import projected_table as tables

FRAMES = 9


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_and_gradients(dtype, padded):
    compare(PARAKEET, parakeet(dtype=dtype), several_sounds(FRAMES, padded))


@pytest.mark.parametrize("backend", ["reference", "sdpa", "cpu"])
def test_backends_and_other_lengths(backend):
    model = parakeet(num_attention_heads=2, num_key_value_heads=2)
    for frames in (1, 17):
        compare(PARAKEET, model, several_sounds(frames, padded=frames > 2), backend=backend)


def test_training_without_dropout_and_under_autocast():
    model, runs = parakeet().train(), several_sounds(FRAMES)
    # What is added ahead of a batch norm in training has no gradient.
    case = replace(PARAKEET, ignored=(*PARAKEET.ignored, "depthwise_conv.bias"))
    compare(case, model, runs)
    compare(
        case, model, runs, working=torch.bfloat16,
        context=lambda: torch.autocast("cpu", torch.bfloat16),
    )  # fmt: skip


def test_eager_is_held_to_sdpa_and_gives_probabilities_where_asked():
    model = parakeet("eager")
    runs = several_sounds(FRAMES, padded=False)  # padding overflows in Hugging Face's float64
    compare(PARAKEET, model, runs, exact=in_float64(parakeet()))  # its softmax is in fp32
    inputs, fast = runs[0], accelerated(model)
    with torch.no_grad():
        plain = fast(**inputs)
        full = fast(**inputs, output_attentions=True, output_hidden_states=True)
        expected = model(**inputs, output_attentions=True, output_hidden_states=True)
        again = fast(**inputs)  # the hooks of transformers stay on the modules for good
    assert len(full.attentions) == LAYERS
    for x, y in zip(full.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(x, y)
    for x, y in zip(full.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.last_hidden_state, plain.last_hidden_state)
    with torch.no_grad():
        sdpa = accelerated(parakeet())(**inputs, output_attentions=True)
    assert sdpa.attentions == parakeet()(**inputs, output_attentions=True).attentions == ()


def test_padded_frames_are_huggingfaces_too():
    """What follows the end of a transcript in a batch is made of them."""
    model, inputs = parakeet(), sounds(FRAMES)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        actual = accelerated(model)(**inputs).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_users_hook_sees_probabilities_under_eager():
    fast, seen = accelerated(parakeet("eager")), []
    attention = fast.layers[0].self_attn
    handle = attention.register_forward_hook(lambda module, args, out: seen.append(out[1]))
    fast(**sounds(FRAMES))
    handle.remove()
    fast(**sounds(FRAMES))
    assert [tuple(x.shape) for x in seen] == [(2, 4, FRAMES, FRAMES)]


@pytest.mark.parametrize("kind", ["ctc", "tdt", "rnnt"])
def test_transcripts_token_for_token(kind):
    model = ctc() if kind == "ctc" else transducer(kind)
    options = {} if kind == "ctc" else {"max_new_tokens": 60}
    fast = accelerated(model)
    for seed in range(3):
        inputs = sounds(24, seed=seed)
        inputs["input_features"] *= 4
        expected, actual = (m.generate(**inputs, **options) for m in (model, fast))
        if kind != "ctc":
            assert torch.equal(actual.durations, expected.durations)
            expected, actual = expected.sequences, actual.sequences
        assert torch.equal(actual, expected)
        assert len(expected.unique()) > 1


def test_ctc_loss_and_its_gradients():
    model, labels = ctc(), torch.randint(1, VOCABULARY, (2, 4))
    fast = accelerated(model)
    losses = [each(**sounds(FRAMES), labels=labels).loss for each in (fast, model)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, actual), expected in zip(fast.named_parameters(), model.parameters(), strict=True):
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_dropout_is_drawn_and_repeats_by_seed():
    rates = {"attention_dropout": 0.3, "activation_dropout": 0.2, "dropout_positions": 0.4}
    fast = accelerated(parakeet(**rates)).train()
    inputs = sounds(FRAMES)

    def run(seed):
        torch.manual_seed(seed)
        return fast(**inputs).last_hidden_state

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    run(3).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in fast.parameters() if p.grad is not None)
    table = fast.encode_positions(torch.empty(2, FRAMES, 32))
    dropped = nn.functional.dropout(table, 0.4)
    assert not torch.equal(dropped[0], dropped[1])  # one mask for each element, as HF's


def test_gradient_checkpointing():
    model = parakeet().train()
    plain, checkpointed = accelerated(model), accelerated(model)
    checkpointed.gradient_checkpointing_enable()
    for each in (plain, checkpointed):
        torch.manual_seed(0)
        each(**sounds(FRAMES)).last_hidden_state.square().sum().backward()
    for x, y in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(x.grad, y.grad)


def test_compiled_without_a_break():
    model = parakeet(num_hidden_layers=1).requires_grad_(False)
    fast = torch.compile(accelerated(model), backend="aot_eager", fullgraph=True)
    inputs = sounds(FRAMES)
    with torch.no_grad():
        actual, expected = fast(**inputs), model(**inputs)
    torch.testing.assert_close(
        actual.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-5
    )


def test_exported():
    model = parakeet()
    inputs = sounds(FRAMES, padded=False)
    program = torch.export.export(accelerated(model), (), inputs)
    with torch.no_grad():
        actual = program.module()(**inputs).last_hidden_state
        expected = model(**inputs).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_restore_pickle_copy_and_saving(tmp_path):
    model = parakeet()
    before = {name: (type(module), id(module)) for name, module in model.named_modules()}
    inputs = sounds(FRAMES)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        xlnet_fast.accelerate(model, backend="sdpa")
        actual = model(**inputs).last_hidden_state
        for base, count in PARAKEET.adopted.items():
            assert sum(original_class(m) is base for m in model.modules()) == count
        assert xlnet_fast.is_accelerated(model)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(**inputs).last_hidden_state, actual)
            assert xlnet_fast.explain(again).rows[0].backend == "sdpa"
        buffer = io.BytesIO()
        torch.save(model, buffer)
        model.save_pretrained(tmp_path)
        plain = ParakeetEncoder.from_pretrained(tmp_path)
        assert not xlnet_fast.is_accelerated(plain)
        assert torch.equal(plain(**inputs).last_hidden_state, expected)
        xlnet_fast.restore(model)
        assert torch.equal(model(**inputs).last_hidden_state, expected)
    assert {name: (type(m), id(m)) for name, m in model.named_modules()} == before
    assert "_xlnet_fast_options" not in vars(model.layers[0].self_attn)


def test_enable_and_other_models_around(tmp_path):
    ctc().save_pretrained(tmp_path)
    xlnet_fast.enable("reference")
    try:
        loaded = theirs.ParakeetForCTC.from_pretrained(tmp_path)
    finally:
        xlnet_fast.disable()
    assert xlnet_fast.explain(loaded).rows[0].backend == "reference"
    around = nn.ModuleDict({"a": loaded, "b": ctc()})
    xlnet_fast.accelerate(around)
    assert xlnet_fast.explain(around).rows[0].backend != "reference"


class OwnAttention(theirs.ParakeetEncoderAttention):
    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        return super().forward(hidden_states, position_embeddings, attention_mask)[0] * 2, None


def test_a_subclass_and_a_patch_keep_their_code(monkeypatch):
    model = parakeet()
    model.layers[0].self_attn.__class__ = OwnAttention
    inputs = sounds(FRAMES, padded=False)
    expected = model(**inputs).last_hidden_state
    fast = accelerated(model)
    assert original_class(fast.layers[0].self_attn) is None
    torch.testing.assert_close(fast(**inputs).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    told = xlnet_fast.explain(fast)
    assert told.verdict.startswith("accelerated in part: the attention of 1 of 2 modules")
    assert "OwnAttention overrides forward" in told.verdict
    patched = accelerated(parakeet())
    monkeypatch.setattr(
        theirs.ParakeetEncoderFeedForward, "forward", lambda self, hidden_states: hidden_states * 0
    )
    torch.testing.assert_close(
        patched(**inputs).last_hidden_state, parakeet()(**inputs).last_hidden_state,
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    assert "ParakeetEncoderFeedForward.forward was replaced" in str(xlnet_fast.explain(patched))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"num_key_value_heads": 2}, "fewer heads of keys"),
        (
            {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 258},
            "head dim is 258",
        ),
    ],
)
def test_what_keeps_huggingfaces_attention_is_told(config, why):
    model = parakeet(**config)
    fast = accelerated(model)
    assert not any(isinstance(m, ours.FastAttention) for m in fast.modules())
    assert why in xlnet_fast.explain(fast).verdict
    inputs = sounds(FRAMES, padded=False)
    with torch.no_grad():
        torch.testing.assert_close(
            fast(**inputs).last_hidden_state, model(**inputs).last_hidden_state,
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip


def test_flex_attention_is_huggingfaces_even_when_chosen_later():
    fast = accelerated(parakeet())
    fast.config._attn_implementation = "flex_attention"
    assert "attn_implementation is 'flex_attention'" in xlnet_fast.explain(fast).verdict
    attention = fast.layers[0].self_attn
    x = torch.randn(1, 3, 32)
    table = fast.encode_positions(x)
    assert not ours.attends_as_ours(attention, table, None, {})


def test_the_kept_projection_follows_every_write_to_the_weight():
    fast = accelerated(parakeet())
    inputs = sounds(FRAMES)
    weight = fast.layers[0].self_attn.relative_k_proj.weight

    def fresh():
        tables._KEPT.clear()
        return fast(**inputs).last_hidden_state

    with torch.no_grad():
        fast(**inputs)
        kept = tables._KEPT[fast.layers[0].self_attn.relative_k_proj].projected
        fast(**sounds(4))  # fewer frames: rows of the same
        assert tables._KEPT[fast.layers[0].self_attn.relative_k_proj].projected is kept
        for write in (lambda: weight.mul_(2), lambda: weight.data.copy_(weight * 1.5)):
            write()
            stale = fast(**inputs).last_hidden_state
            assert torch.equal(stale, fresh())
        weight.data[3, 5] += 1e-3  # past autograd's count of versions
        assert torch.equal(fast(**inputs).last_hidden_state, fresh())
        more = fast(**sounds(40)).last_hidden_state  # more frames than were kept
        tables._KEPT.clear()
        assert torch.equal(more, fast(**sounds(40)).last_hidden_state)
    with torch.inference_mode():
        inferred = fast(**inputs).last_hidden_state
    trained = fast(**inputs).last_hidden_state  # what inference kept must not reach autograd
    trained.sum().backward()
    torch.testing.assert_close(inferred.clone(), trained.detach(), rtol=1e-5, atol=1e-6)
