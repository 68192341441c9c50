"""torch.compile without graph breaks or recompilation, and torch.export with dynamic shapes."""

from __future__ import annotations

import pytest
import torch
from cpu_kernels import FUSED_ON_CPU
from hf_parity import (
    CLASSES,
    accelerated,
    assert_tight,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    run,
    tiny_model,
)
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    XLNetForMultipleChoice,
    XLNetForSequenceClassification,
    XLNetLMHeadModel,
    XLNetModel,
)
from transformers.models.xlnet.modeling_xlnet import XLNetLayer

import xlnet_fast
from xlnet_fast import BackendUnavailable

BATCH, LENGTH = 2, 6
TRACED = "eager"  # a backend for what Dynamo alone decides: graph breaks and recompilation
F64 = torch.float64
HEADS = [cls for cls in CLASSES if cls not in (XLNetModel, XLNetLMHeadModel)]  # of other tests


class OwnLayer(XLNetLayer):
    """A layer that keeps its own code, and so gets HF's dense arguments."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def poisoned_memory():
    """Not here: a traced program would contain the poison, and so would a compiler's buffers."""


def inputs_of(kind, batch=BATCH, length=LENGTH):
    inputs = {"input_ids": random_ids(batch, length)}
    if kind in ("padding", "two streams"):
        inputs["attention_mask"] = padding(batch, length, "left")
        inputs["token_type_ids"] = random_ids(batch, length, 1) % 2
    if kind == "mems":
        inputs["mems"] = [m.double() for m in random_mems(batch, 3)[:1]]
    if kind in ("two streams", "compact"):
        rows = [[4, 0, 2], [1, 5, 3]]
        inputs["target_mapping"] = one_hot_targets(rows, length).double()
        inputs["perm_mask"] = torch.ones(batch, length, length, dtype=F64).triu()
    if kind == "compact":
        del inputs["target_mapping"], inputs["perm_mask"]
        rank = torch.arange(length).repeat(batch, 1)
        inputs |= {"target_positions": torch.tensor(rows), "permutation_ranks": (rank, rank)}
    return inputs


@pytest.mark.parametrize("layer", [None, "own"])
def test_one_graph_with_probabilities_and_dense_arguments(layer):
    model = tiny_model(XLNetLMHeadModel, F64, n_layer=1)
    if layer == "own":
        model.transformer.layer[0].__class__ = OwnLayer
    xlnet_fast.accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend=TRACED)
    inputs = inputs_of("two streams") | {"output_attentions": True}
    with torch.no_grad():
        actual, expected = (run(m, inputs, backward=False) for m in (compiled, model))
    assert_tight(actual, expected)


@pytest.mark.parametrize("kind", ["mems", "two streams", "compact"])
def test_one_graph_with_gradients(kind):
    model = accelerated(tiny_model(XLNetLMHeadModel, F64, n_layer=1)).train(kind != "mems")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = run(model, inputs_of(kind))
    actual = run(compiled, inputs_of(kind))
    assert_tight({name.replace("_orig_mod.", ""): x for name, x in actual.items()}, expected)


@pytest.mark.parametrize("cls", HEADS, ids=lambda cls: cls.__name__)
def test_one_graph_for_every_head(cls):
    model = accelerated(tiny_model(cls, F64, n_layer=1))
    inputs = inputs_of("padding")
    if cls is XLNetForMultipleChoice:
        inputs = {name: x[None] for name, x in inputs.items()}
    compiled = torch.compile(model, fullgraph=True, backend=TRACED)
    with torch.no_grad():
        actual, expected = (run(m, inputs, backward=False) for m in (compiled, model))
    assert_tight(actual, expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_one_graph_with_dropout(backend):
    model = accelerated(tiny_model(XLNetLMHeadModel, n_layer=1, dropout=0.2), backend=backend)
    model.train()
    # The reference is plain ATen: what is made of its graph is PyTorch's own, and takes long.
    compiler = TRACED if backend == "reference" else "aot_eager"
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    losses = [compiled(random_ids(2, 5), labels=random_ids(2, 5)).loss for _ in range(2)]
    assert losses[0].item() != losses[1].item()  # the seed is drawn in every call, not traced once
    losses[0].backward()
    assert model.transformer.layer[0].rel_attn.q.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["padding", "mems"])
def test_a_second_batch_does_not_recompile(kind):
    counter = CompileCounterWithBackend(TRACED)
    model = accelerated(tiny_model(XLNetModel, F64, n_layer=1))
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for seed in range(3):
            inputs = inputs_of(kind) | {"input_ids": random_ids(BATCH, LENGTH, seed)}
            if "attention_mask" in inputs:
                inputs["attention_mask"] = padding(BATCH, LENGTH, "right" if seed else "left")
            assert_tight(
                run(compiled, inputs, backward=False), run(model, inputs, backward=False), f"{seed}"
            )
    assert counter.frame_count == 1


def test_dynamic_sizes_compile_once():
    counter, first = CompileCounterWithBackend(TRACED), 0
    model = accelerated(tiny_model(XLNetModel, F64, n_layer=1))
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    with torch.no_grad():
        for batch, length in ((2, 6), (3, 9), (5, 17)):
            inputs = inputs_of("padding", batch, length)
            assert_tight(run(compiled, inputs, backward=False), run(model, inputs, backward=False))
            first = counter.frame_count if batch == 2 else first
    assert counter.frame_count == first


@pytest.mark.slow
@pytest.mark.parametrize("backend", FUSED_ON_CPU)
def test_inductor(backend):
    model = accelerated(tiny_model(XLNetLMHeadModel, n_layer=1), backend=backend)
    compiled = torch.compile(model, fullgraph=True)
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "labels": random_ids(BATCH, LENGTH, 1)}
    inputs["attention_mask"] = padding(BATCH, LENGTH, "left")
    actual, expected = run(compiled, inputs), run(model, inputs)
    for name, value in expected.items():
        other = actual.get(name, actual.get(f"d _orig_mod.{name[2:]}"))
        assert (other is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(other, value)


def test_layer_compiled_by_itself():
    """Regional compilation, as HF's Trainer and accelerate do it."""
    model = accelerated(tiny_model(XLNetModel, F64))
    expected = run(model, inputs_of("two streams"), backward=False)
    for layer in model.layer:
        layer.compile(fullgraph=True, backend=TRACED)
    assert_tight(run(model, inputs_of("two streams"), backward=False), expected)


class Classifier(torch.nn.Module):
    """Tensors in and out: torch.export wants no dataclass of transformers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        arguments = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.model(input_ids, **arguments, use_mems=False).logits


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_export_with_dynamic_batch_and_length(backend, tmp_path):
    model = accelerated(tiny_model(XLNetForSequenceClassification, F64, n_layer=1), backend=backend)
    wrapper = Classifier(model).eval()

    def arguments(batch, length):
        inputs = inputs_of("padding", batch, length)
        return tuple(inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids"))

    sizes = {
        0: torch.export.Dim("batch", min=2, max=64),
        1: torch.export.Dim("length", min=2, max=512),
    }
    with torch.no_grad():
        program = torch.export.export(wrapper, arguments(3, 7), dynamic_shapes=[sizes] * 3)
        torch.export.save(program, tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
        for batch, length in ((3, 7), (2, 2), (5, 33)):
            given = arguments(batch, length)
            for candidate in (program.module(), loaded):
                assert_tight({"logits": candidate(*given)}, {"logits": wrapper(*given)})
    targets = {str(node.target) for node in program.graph.nodes}
    assert any("xlnet_fast.rel_attention" in name for name in targets) == (backend == "auto")


def test_an_export_to_onnx_gets_pytorchs_own_code(monkeypatch):
    """`make onnx` goes the whole way; here is what its exporter would be given."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    model = accelerated(tiny_model(XLNetForSequenceClassification, n_layer=1))
    inputs = inputs_of("padding", 2, 4)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        program = torch.export.export(model, (), given)
    assert not [node for node in program.graph.nodes if "xlnet_fast" in str(node.target)]
    with pytest.raises(
        BackendUnavailable, match="an export to ONNX knows PyTorch's own code alone"
    ):
        accelerated(model, backend="sdpa")(**given)
