"""XLM and Flaubert against Hugging Face: every head, mask and mode."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from family_parity import accelerated, assert_parity, in_float64, outputs_of, randomized, run
from hf_parity import Results, stack
from torch import Tensor, nn
from transformers import (
    FlaubertConfig,
    FlaubertForMultipleChoice,
    FlaubertForQuestionAnswering,
    FlaubertForQuestionAnsweringSimple,
    FlaubertForSequenceClassification,
    FlaubertForTokenClassification,
    FlaubertModel,
    FlaubertWithLMHeadModel,
    XLMConfig,
    XLMForMultipleChoice,
    XLMForQuestionAnswering,
    XLMForQuestionAnsweringSimple,
    XLMForSequenceClassification,
    XLMForTokenClassification,
    XLMModel,
    XLMWithLMHeadModel,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.models.flaubert import modeling_flaubert
from transformers.models.xlm import modeling_xlm

import xlnet_fast
from xlnet_fast.check import check_model
from xlnet_fast.check import run as check_run
from xlnet_fast.hf.adoption import original_class
from xlnet_fast.hf.families.content import FastAttention
from xlnet_fast.tolerance import assert_within

VOCABULARY, BATCH, LENGTH = 50, 2, 11
BARE = (XLMModel, FlaubertModel)
WRITERS = (XLMWithLMHeadModel, FlaubertWithLMHeadModel)
HEADS = (
    *BARE,
    *WRITERS,
    XLMForSequenceClassification,
    FlaubertForSequenceClassification,
    XLMForTokenClassification,
    FlaubertForTokenClassification,
    XLMForQuestionAnsweringSimple,
    FlaubertForQuestionAnsweringSimple,
    XLMForQuestionAnswering,
    FlaubertForQuestionAnswering,
    XLMForMultipleChoice,
    FlaubertForMultipleChoice,
)
both_bare = pytest.mark.parametrize("cls", BARE)
both_writers = pytest.mark.parametrize("cls", WRITERS)
CONSTANT = ("k_lin.bias", "start_logits.dense.bias", "end_logits.dense_1.bias")
"""A constant added to all scores of a softmax: its gradient is noise."""


def tiny(cls: type[nn.Module], dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    values = {
        "vocab_size": VOCABULARY, "emb_dim": 16, "n_layers": 2, "n_heads": 2,
        "max_position_embeddings": 64, "dropout": 0.0, "attention_dropout": 0.0,
        "summary_first_dropout": 0.0, "start_n_top": 2, "end_n_top": 2, "n_langs": 2,
        "mask_token_id": 5, "num_labels": 2, "lang_id": 0,
    }  # fmt: skip
    config = XLMConfig if cls.__name__.startswith("XLM") else FlaubertConfig
    return randomized(cls(config(**{**values, **overrides})), dtype)


def ids_of(*shape: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, VOCABULARY, shape or (BATCH, LENGTH), generator=generator)


def padding(batch: int = BATCH, length: int = LENGTH) -> Tensor:
    """Element b lacks its last 3 b tokens."""
    return (torch.arange(length) < length - 3 * torch.arange(batch)[:, None]).long()


def inputs_for(cls: type[nn.Module]) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": ids_of(), "attention_mask": padding()}
    inputs["langs"] = torch.ones_like(inputs["input_ids"])
    if "MultipleChoice" in cls.__name__:
        inputs = {name: x[:, None].repeat(1, 3, 1) for name, x in inputs.items()}
    if "QuestionAnswering" in cls.__name__:
        inputs |= {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
    elif "LMHead" in cls.__name__:
        inputs["labels"] = ids_of()
    return inputs


@contextmanager
def truly_float64() -> Iterator[None]:
    """Hugging Face's softmax is in fp32 whatever the model is: here it stays in float64."""
    before = torch.Tensor.float
    torch.Tensor.float = lambda x: x if x.dtype == torch.float64 else before(x)  # type: ignore
    try:
        yield
    finally:
        torch.Tensor.float = before  # type: ignore[method-assign]


def compare(
    model: Any, inputs: dict[str, Any], *, working: torch.dtype | None = None, **options: Any
) -> Results:
    """Hold an accelerated copy to the tolerance rule on a few texts; what ours gave."""
    backward = options.pop("backward", True)  # without one, PyTorch's own attention is ours
    context = {} if backward else {"context": torch.no_grad}
    context = options.pop("context", context)
    shape = inputs["input_ids"].shape
    texts = [inputs | {"input_ids": ids_of(*shape, seed=seed)} for seed in range(6)]
    fast, double = accelerated(model, **options), in_float64(model)
    ours = stack([run(fast, text, backward=backward, **context) for text in texts])
    eager = stack([run(model, text, backward=backward, **context) for text in texts])
    exact = stack([run(double, t, backward=backward, context=truly_float64) for t in texts])
    assert_parity(ours, eager, exact, working=working, ignored=CONSTANT)
    return ours


@pytest.mark.parametrize("cls", HEADS)
def test_every_head(cls: type[nn.Module]) -> None:
    """Flaubert's heads are XLM's on the same layers: their gradients are taken once."""
    compare(tiny(cls), inputs_for(cls), backward=cls.__name__.startswith("XLM"))


@both_writers
@pytest.mark.parametrize(
    "options",
    [{"gelu_activation": False}, {"chunk_size_feed_forward": 4}, {"causal": True}],
    ids=["relu", "chunks", "causal"],
)
def test_options(cls: type[nn.Module], options: dict[str, Any]) -> None:
    inputs = {"input_ids": ids_of(2, 12), "attention_mask": padding(2, 12)}
    compare(tiny(cls, **options), inputs)


@both_writers
def test_adaptive_softmax(cls: type[nn.Module]) -> None:
    """Hugging Face's own code, which takes rows alone: its models cannot call it."""
    model = tiny(cls, asm=True, asm_cutoffs=[10, 20], asm_div_value=2.0)
    x, labels = torch.randn(5, 16), ids_of(5)
    ours, theirs = accelerated(model).pred_layer(x, labels), model.pred_layer(x, labels)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@both_bare
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_low_precision(cls: type[nn.Module], dtype: torch.dtype, causal: bool) -> None:
    inputs = {"input_ids": ids_of(), "attention_mask": padding()}
    compare(tiny(cls, dtype, causal=causal), inputs)


@both_bare
def test_autocast(cls: type[nn.Module]) -> None:
    inputs = {"input_ids": ids_of(), "attention_mask": padding()}
    context = {"context": lambda: torch.autocast("cpu", torch.bfloat16)}
    compare(tiny(cls), inputs, context=context, working=torch.bfloat16)


@both_bare
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_text_of_padding_alone(cls: type[nn.Module], causal: bool, backward: bool) -> None:
    """Its tokens see all of it, until the model clears them."""
    inputs = {"input_ids": ids_of(3, LENGTH), "attention_mask": padding(3)}
    inputs["attention_mask"][2] = 0
    compare(tiny(cls, causal=causal), inputs, backward=backward)


@both_writers
@pytest.mark.parametrize("causal", [False, True])
def test_generation(cls: type[nn.Module], causal: bool) -> None:
    model = tiny(cls, causal=causal, eos_token_id=None)
    options = {"max_new_tokens": 6, "pad_token_id": 2}
    for more in ({"do_sample": False}, {"num_beams": 3}):
        theirs = model.generate(ids_of(), **options, **more)
        assert torch.equal(accelerated(model).generate(ids_of(), **options, **more), theirs)


def new_cache() -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def in_steps(model: Any, cache: Any) -> list[Tensor]:
    ids = ids_of()
    return [model(ids[:, :end], cache=cache)[0] for end in (6, 7, LENGTH)]


@both_bare
def test_cache(cls: type[nn.Module]) -> None:
    model = tiny(cls, causal=True)
    cache, theirs = new_cache(), new_cache()
    results = in_steps(accelerated(model), cache)
    eager = in_steps(model, theirs)
    with truly_float64():
        exact = in_steps(in_float64(model), new_cache())
    for values in zip(results, eager, exact, strict=True):
        assert_within(*values)
    layers = zip(cache.self_attention_cache.layers, theirs.self_attention_cache.layers, strict=True)
    for ours, layer in layers:
        assert ours.keys.shape == layer.keys.shape


@both_bare
def test_check(cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """`xlnet-fast check` of a checkpoint."""
    monkeypatch.setattr(check_run, "DTYPES", {"fp32": torch.float32})
    monkeypatch.setattr(check_run, "BACKENDS", ("sdpa", "cpu"))
    verdicts = list(check_model(tiny(cls)))
    assert [v.status for v in verdicts] == ["ok"] * 6, [v.reason for v in verdicts]


@both_bare
def test_probabilities(cls: type[nn.Module]) -> None:
    """They are made by Hugging Face's code, and so is all that comes with them."""
    inputs = {"input_ids": ids_of(), "attention_mask": padding()}
    asked = {"output_attentions": True, "output_hidden_states": True}
    results = compare(tiny(cls), inputs | asked)
    assert {"attentions.1", "hidden_states.2"} <= results.keys()
    model = tiny(cls, output_attentions=True)
    assert "attentions.1" in outputs_of(accelerated(model), inputs)


def attention_of(module: Any, **config: Any) -> Any:
    given = XLMConfig(attention_dropout=0.0, **config)
    return randomized(module.MultiHeadAttention(2, 16, given))


class Holder(nn.Module):
    """A user's own module around one of Hugging Face's."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.attention(*args, **kwargs)


both_modules = pytest.mark.parametrize("module", [modeling_xlm, modeling_flaubert])


@both_modules
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("backend", "grad"), [("auto", False), ("auto", True), ("cpu", False)])
def test_dense_masks(module: Any, backend: str, grad: bool, dtype: torch.dtype) -> None:
    """Any mask by query and key, floating ones too, with rows that see nothing."""
    model = Holder(attention_of(module)).to(dtype)
    x = torch.randn(2, 9, 16, dtype=dtype)
    mask = (torch.rand(2, 9, 9) < 0.5).float()
    mask[1, 4] = 0
    with torch.set_grad_enabled(grad):
        ours = accelerated(model, backend=backend)(x, mask)[0]
    with truly_float64():
        exact = in_float64(model)(x.double(), mask)[0]
    assert_within(ours, model(x, mask)[0], exact)


@both_modules
def test_mask_written_to(module: Any) -> None:
    """What was made of a mask is not taken for another, nor for the same one after a change."""
    model = Holder(attention_of(module))
    fast, x, mask = accelerated(model), torch.randn(1, 9, 16), torch.ones(1, 9)
    for change in (None, 3, 5):
        if change is not None:
            mask[0, change:] = 1 - mask[0, change:]
        with truly_float64():
            exact = in_float64(model)(x.double(), mask)[0]
        assert_within(fast(x, mask)[0], model(x, mask)[0], exact)


@both_modules
def test_attention_to_other_states(module: Any) -> None:
    model = Holder(attention_of(module))
    given = (torch.randn(2, 5, 16), torch.ones(2, 7), torch.randn(2, 7, 16))
    assert torch.equal(accelerated(model)(*given)[0], model(*given)[0])
    assert len(accelerated(model)(*given[:2], kv=given[2], output_attentions=True)) == 2


@both_modules
def test_forward_derivatives(module: Any) -> None:
    model = Holder(attention_of(module))
    fast, x, mask = accelerated(model), torch.randn(1, 5, 16), torch.ones(1, 5)
    value, expected = (
        torch.func.jvp(lambda y, call=call: call(y, mask)[0], (x,), (torch.ones_like(x),))
        for call in (fast, model)
    )
    assert all(map(torch.equal, value, expected))


@both_modules
@pytest.mark.parametrize("masked", [False, True])
def test_dropout(module: Any, masked: bool) -> None:
    """Values that are the keys' unit vectors show the probabilities as they were dropped."""
    keys = 64
    attention = module.MultiHeadAttention(1, keys, XLMConfig(attention_dropout=0.25))
    with torch.no_grad():
        for layer in (attention.v_lin, attention.out_lin):
            layer.weight.copy_(torch.eye(keys))
            layer.bias.zero_()
    model = Holder(attention)
    mask = torch.ones(1, keys)
    if masked:
        mask[0, 40:] = 0
    x = torch.eye(keys)[None]
    with truly_float64():
        exact = in_float64(model.eval())(x.double(), mask)[0].detach()
    whole = model(x, mask)[0].detach()
    dropped = accelerated(model.train())(x, mask)[0].detach()
    kept, real = dropped != 0, exact != 0
    assert not bool((kept & ~real).any())
    assert_within(dropped[kept], (whole / 0.75)[kept], (exact / 0.75)[kept])
    count = int(real.sum())
    share = int((kept & real).sum()) / count
    assert abs(share - 0.75) < 5 * (0.25 * 0.75 / count) ** 0.5  # five standard deviations


@both_bare
def test_training_with_dropout(cls: type[nn.Module]) -> None:
    model = accelerated(tiny(cls, dropout=0.1, attention_dropout=0.1)).train()
    results = run(model, {"input_ids": ids_of(), "attention_mask": padding()})
    missing = [name for name, value in results.items() if value is None]
    assert all(name.startswith("d lang") for name in missing)
    assert all(value is None or bool(value.isfinite().all()) for value in results.values())


def test_compiled_and_exported() -> None:
    model = Holder(attention_of(modeling_xlm))
    fast, x, mask = accelerated(model), torch.randn(2, 7, 16), torch.ones(2, 7)
    mask[1, 4:] = 0
    exact = in_float64(model)(x.double(), mask)[0]
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    assert_within(compiled(x, mask)[0], model(x, mask)[0], exact)
    exported = torch.export.export(fast, (x, mask)).module()
    assert_within(exported(x, mask)[0], model(x, mask)[0], exact)


@both_writers
def test_mechanics(cls: type[nn.Module], tmp_path: Any) -> None:
    model = tiny(cls)
    inputs = {"input_ids": ids_of(), "attention_mask": padding()}
    before, names = outputs_of(model, inputs), set(model.state_dict())
    fast = xlnet_fast.accelerate(model)
    ours = outputs_of(fast, inputs)
    assert sum(original_class(m) is not None for m in fast.modules()) == 2 * 2 + 1
    assert set(fast.state_dict()) == names
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert all(torch.equal(ours[name], x) for name, x in outputs_of(again, inputs).items())
        assert isinstance(transformer_of(again).attentions[0], FastAttention)
    fast.save_pretrained(tmp_path)
    loaded = outputs_of(cls.from_pretrained(tmp_path), inputs)
    assert all(torch.equal(before[name], x) for name, x in loaded.items())
    restored = outputs_of(xlnet_fast.restore(fast), inputs)
    assert all(torch.equal(before[name], x) for name, x in restored.items())
    assert not xlnet_fast.is_accelerated(fast)


def transformer_of(model: Any) -> Any:
    return getattr(model, "transformer", model)


def test_subclasses_and_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(modeling_xlm.MultiHeadAttention):
        def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (input,)

    model = tiny(XLMModel)
    model.attentions[0] = Own(2, 16, model.config)
    fast = accelerated(model)
    assert original_class(fast.attentions[0]) is None
    assert original_class(fast.attentions[1]) is not None
    told = str(xlnet_fast.explain(fast))
    assert "attention of 1 of 2 modules keeps its own code: Own overrides forward" in told
    monkeypatch.setattr(
        modeling_xlm.TransformerFFN, "ff_chunk", lambda self, input: torch.zeros_like(input)
    )
    x = torch.randn(1, 3, 16)
    assert not bool(fast.ffns[0](x).any())
    told = str(xlnet_fast.explain(fast)).replace("\n", " ")
    assert "TransformerFFN.ff_chunk was replaced" in told


def test_wide_heads_stay() -> None:
    model = tiny(XLMModel, emb_dim=264, n_heads=1, n_layers=1)
    fast = accelerated(model)
    assert original_class(fast.attentions[0]) is None
    assert original_class(fast.ffns[0]) is not None
    assert "head dim is 264" in str(xlnet_fast.explain(fast)).replace("\n", " ")


def test_explained() -> None:
    """What the attention is, which no row of the table says but where a backend is named."""
    model = accelerated(tiny(FlaubertModel))
    told = xlnet_fast.explain(model)
    assert told.verdict.startswith("ready")
    assert any("scaled_dot_product_attention" in note for note in told.notes)
    assert {row.op for row in told.rows} == {"linear"}
    named = xlnet_fast.explain(accelerated(model, backend="reference"))
    assert {row.op for row in named.rows} == {"linear", "rel_attention"}
