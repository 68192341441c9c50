"""All seven classes, in every precision, in evaluation and in training: outputs and gradients.

Below its head every class is the same code, so that one class stands for all of them there.
"""

from __future__ import annotations

import functools

import pytest
import torch
from cpu_kernels import FUSED_ON_CPU
from hf_parity import (
    CLASSES,
    F64,
    accelerated,
    assert_tight,
    compare,
    hf_in,
    in_dtype,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    run,
    tiny_model,
)
from transformers import (
    XLNetForMultipleChoice,
    XLNetForQuestionAnswering,
    XLNetForQuestionAnsweringSimple,
    XLNetForSequenceClassification,
    XLNetForTokenClassification,
    XLNetLMHeadModel,
    XLNetModel,
)

BATCH, LENGTH, TARGETS, CHOICES = 2, 6, 3, 2
RUNS = 8
PERM_MASK = torch.ones(BATCH, LENGTH, LENGTH).triu()
AUTOCAST = functools.partial(torch.autocast, "cpu", torch.bfloat16)


def inputs_of(cls: type, kind: str, seed: int) -> dict:
    """Forward arguments with labels. Kinds: "padding", "mems", "two streams"."""
    ids, types = random_ids(BATCH, LENGTH, seed), random_ids(BATCH, LENGTH, seed + 50) % 2
    inputs = {"input_ids": ids, "token_type_ids": types}
    if kind == "padding":
        inputs["attention_mask"] = padding(BATCH, LENGTH, "left")
    if kind == "mems":
        inputs |= {"mems": random_mems(BATCH, 3, seed), "use_mems": True}
    if kind == "two streams":
        inputs["perm_mask"] = PERM_MASK
        rows = [[1, 5, 3], [0, 4, -1]]
        inputs["target_mapping"] = one_hot_targets(rows, LENGTH)
    length = TARGETS if kind == "two streams" else LENGTH
    if cls is XLNetLMHeadModel:
        inputs["labels"] = random_ids(BATCH, length, seed + 100)
    elif cls is XLNetForTokenClassification:
        inputs["labels"] = random_ids(BATCH, length, seed + 100) % 2
    elif cls is XLNetForSequenceClassification:
        inputs["labels"] = torch.tensor([0, 1])
    elif cls in (XLNetForQuestionAnswering, XLNetForQuestionAnsweringSimple):
        inputs |= {"start_positions": torch.tensor([0, 2]), "end_positions": torch.tensor([1, 2])}
    if cls is XLNetForQuestionAnswering:
        inputs |= {"cls_index": torch.tensor([2, 1]), "is_impossible": torch.tensor([1.0, 0.0])}
    if cls is XLNetForMultipleChoice:
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            if name in inputs:
                inputs[name] = inputs[name].view(BATCH // CHOICES, CHOICES, LENGTH)
        inputs["labels"] = torch.tensor([1])
    return inputs


KINDS = ["padding", "mems", "two streams"]
TRAINED = "two streams"  # the others in evaluation
HEADS = [cls for cls in CLASSES if cls is not XLNetLMHeadModel]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_float64(cls, kind):
    model = tiny_model(cls, F64).train(kind == TRAINED)
    inputs = in_dtype(inputs_of(cls, kind, 0), F64)
    if "is_impossible" in inputs:
        inputs["is_impossible"] = inputs["is_impossible"].double()
    expected = run(hf_in(model, F64), inputs)
    for backend in ("reference", "sdpa"):
        assert_tight(run(accelerated(model, backend=backend), inputs), expected, backend)


DTYPES = {"fp32": torch.float32, "autocast": torch.float32, "bf16": torch.bfloat16,
          "fp16": torch.float16}  # fmt: skip


def compare_in(precision: str, cls: type, kind: str, **options) -> None:
    dtype = DTYPES[precision]
    model = tiny_model(cls, dtype).train(kind == TRAINED)
    inputs = [inputs_of(cls, kind, seed) for seed in range(RUNS)]
    if precision == "autocast":
        options |= {"context": AUTOCAST, "working": torch.bfloat16}
    compare(model, inputs, dtype, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("backend", FUSED_ON_CPU)
def test_working_precisions(kind, precision, backend):
    compare_in(precision, XLNetLMHeadModel, kind, backend=backend)


@pytest.mark.parametrize("cls", HEADS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("precision", ["autocast", "bf16"])
def test_every_head_in_working_precisions(cls, precision):
    compare_in(precision, cls, "mems")


@pytest.mark.parametrize("labelled", [False, True])
def test_question_answering_beam_search_at_inference(labelled):
    """Without labels this head searches start and end: indices are equal, too."""
    model = tiny_model(XLNetForQuestionAnswering, F64)
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "p_mask": torch.zeros(BATCH, LENGTH).double()}
    inputs["p_mask"][:, 0] = 1
    if labelled:
        inputs["start_positions"] = torch.tensor([1, 2])  # without end_positions: still inference
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


@pytest.mark.parametrize("summary_type", ["last", "first", "mean", "cls_index"])
@pytest.mark.parametrize("cls", [XLNetForSequenceClassification, XLNetForMultipleChoice])
def test_summary_types(cls, summary_type):
    model = tiny_model(cls, F64, summary_type=summary_type)
    inputs = in_dtype(inputs_of(cls, "padding", 0), F64)
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


@pytest.mark.parametrize(("num_labels", "labels"), [(1, [0.5, 1.5]), (3, [[1.0, 0, 1], [0, 1, 1]])])
def test_regression_and_multi_label_losses(num_labels, labels):
    model = tiny_model(XLNetForSequenceClassification, F64, num_labels=num_labels)
    inputs = {"input_ids": random_ids(2, LENGTH), "labels": torch.tensor(labels, dtype=F64)}
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


def test_parameters_that_from_pretrained_leaves_in_float32(tmp_path):
    """HF loads in bf16 with attention parameters in fp32 and cannot run what it loaded.

    Ours runs it as the model whose parameters are all bf16.
    """
    saved = tiny_model(XLNetLMHeadModel)
    saved.save_pretrained(tmp_path)
    mixed = XLNetLMHeadModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    inputs = {"input_ids": random_ids(BATCH, LENGTH)}
    ours = accelerated(mixed)
    pure = accelerated(saved.to(torch.bfloat16))
    assert torch.equal(ours(**inputs).logits, pure(**inputs).logits)
    dtypes = {name: parameter.dtype for name, parameter in ours.named_parameters()}
    if torch.float32 in dtypes.values():
        with pytest.raises(RuntimeError, match="Float"):
            mixed(**inputs)
    ours(**inputs).logits.sum().backward()
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == dtypes[name], name
            assert parameter.grad.isfinite().all(), name


def test_attention_parameters_in_float32_among_bfloat16():
    """The mixture made by hand, whatever this version of transformers loads."""
    model = tiny_model(XLNetModel, torch.bfloat16)
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "token_type_ids": random_ids(2, LENGTH) % 2}
    inputs["target_mapping"] = one_hot_targets([[1], [2]], LENGTH)
    expected = run(accelerated(model), inputs)
    for layer in model.layer:
        for name, parameter in layer.rel_attn.named_parameters(recurse=False):
            setattr(layer.rel_attn, name, torch.nn.Parameter(parameter.float()))
    with pytest.raises(RuntimeError):
        model(**inputs)
    actual = run(accelerated(model), inputs)
    for name, value in actual.items():
        reference = expected[name]
        assert (value is None) == (reference is None), name
        if value is not None and reference is not None:
            assert torch.equal(value.to(torch.bfloat16), reference), name
