"""What is asked of a model beyond values and gradients: Hugging Face's answer, in float64.

Forward-mode derivatives, ``torch.func``, derivatives of derivatives, and fake tensors.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hf_parity import (
    CLASSES,
    F64,
    WIDTH,
    accelerated,
    assert_tight,
    flatten,
    hf_in,
    in_dtype,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    tiny_model,
)
from torch import Tensor, func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd import functional as autograd_functional
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import XLNetForSequenceClassification, XLNetLMHeadModel

import xlnet_fast
from xlnet_fast.errors import BackendUnavailable

BATCH, LENGTH = 2, 4


def inputs_of(kind: str, dtype: torch.dtype = F64) -> dict[str, Any]:
    segments = random_ids(BATCH, LENGTH, 1) % 2
    if kind == "padded":
        return {"attention_mask": padding(BATCH, LENGTH, "left"), "token_type_ids": segments}
    hidden = torch.rand(BATCH, LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.3
    return in_dtype(
        {
            "perm_mask": hidden.to(dtype),
            "target_mapping": one_hot_targets([[3, 0], [1, 2]], LENGTH),
            "token_type_ids": segments,
            "mems": random_mems(BATCH, 2),
        },
        dtype,
    )


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Any, Any]]:
    """By kind of input, Hugging Face's model and the accelerated one."""
    kinds = {"padded": XLNetForSequenceClassification, "two streams": XLNetLMHeadModel}
    models = {kind: tiny_model(cls, F64) for kind, cls in kinds.items()}
    return {kind: (hf_in(model, F64), accelerated(model)) for kind, model in models.items()}


def embeds(seed: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, LENGTH, WIDTH, dtype=F64, generator=generator)


X, TANGENT = embeds(), embeds(5)


def loss(f, x):
    return f(x).square().sum()


def by_hand(f, grad=True):
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(X, TANGENT))).tangent


def without_grad(f):
    with torch.no_grad():
        return func.jvp(f, (X,), (TANGENT,))


def gradient(f, create_graph=True):
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(f, x), x, create_graph=create_graph)
    return grad, x


def derivative_again(f, times):
    grad, x = gradient(f)
    for _ in range(times):
        (grad,) = torch.autograd.grad((grad * TANGENT).sum(), x, create_graph=True)
    return grad


def checkpointed(f):
    return derivative_again(lambda x: checkpoint(f, x, use_reentrant=False), 1)


def many_gradients_at_once(f):
    x = X.clone().requires_grad_()
    y = f(x)
    directions = torch.stack([torch.ones_like(y), y.detach().sin()])
    return torch.autograd.grad(y, x, directions, is_grads_batched=True)


def forward_over_an_earlier_graph(f):
    x = X.clone().requires_grad_()
    y = f(x)

    def pull(direction):
        return torch.autograd.grad(y, x, direction, retain_graph=True)[0]

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones_like(y), y.detach().sin())
        tangent = forward_ad.unpack_dual(pull(dual)).tangent
    return tangent, func.jvp(pull, (torch.ones_like(y),), (y.detach().sin(),))


QUESTIONS = {
    "jvp": lambda f: func.jvp(f, (X,), (TANGENT,)),
    "jvp without gradients": without_grad,
    "forward_ad": by_hand,
    "forward_ad without gradients": lambda f: by_hand(f, grad=False),
    "grad": lambda f: func.grad(lambda x: loss(f, x))(X),
    "jacrev": lambda f: func.jacrev(f)(X),
    "jacfwd": lambda f: func.jacfwd(lambda x: f(X + x[:, :, None])[..., 0])(X[..., 0]),
    "hessian": lambda f: func.hessian(lambda x: loss(f, X + x[:, None, None]))(X[:, 0, 0]),
    "forward over reverse": lambda f: func.jvp(func.grad(lambda x: loss(f, x)), (X,), (TANGENT,)),
    "reverse over forward": lambda f: func.grad(
        lambda x: func.jvp(lambda y: loss(f, y), (x,), (TANGENT,))[1]
    )(X),
    "autograd.functional": lambda f: autograd_functional.vhp(lambda x: loss(f, x), X, TANGENT),
    "vmap": lambda f: func.vmap(f)(torch.stack([X, TANGENT])),
    "vmap of the width": lambda f: func.vmap(f, in_dims=2, out_dims=1)(
        torch.stack([X, TANGENT], 2)
    ),
    "second derivative": lambda f: derivative_again(f, 1),
    "third derivative": lambda f: derivative_again(f, 2),
    "second derivative under checkpoint": checkpointed,
    "many gradients at once": many_gradients_at_once,
    "forward over an earlier graph": forward_over_an_earlier_graph,
}


@pytest.mark.parametrize("kind", ["padded", "two streams"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_of_the_embeddings(pairs, kind, question):
    inputs, ask = inputs_of(kind), QUESTIONS[question]
    hf, ours = (
        flatten(ask(lambda x, model=model: model(inputs_embeds=x, **inputs).logits))
        for model in pairs[kind]
    )
    assert all(bool((value != 0).any()) for value in hf.values())
    assert_tight(ours, hf)


# --- of the parameters ----------------------------------------------------------------------------


def call(model, parameters, **inputs):
    return func.functional_call(model, parameters, (), inputs).logits


def parameters_of(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def per_sample_gradients(model):
    def of_one(parameters, ids, mask):
        one = {"input_ids": ids[None], "attention_mask": mask[None]}
        return call(model, parameters, **one).square().sum()

    samples = (random_ids(BATCH, LENGTH), padding(BATCH, LENGTH, "left"))
    return func.vmap(func.grad(of_one), (None, 0, 0))(parameters_of(model), *samples)


def ensemble(model):
    models = [model, copy.deepcopy(model)]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(1.1)
    stacked, buffers = func.stack_module_state(models)
    ids = random_ids(BATCH, LENGTH)
    return func.vmap(lambda p, b: call(model, {**p, **b}, input_ids=ids))(stacked, buffers)


def tuned_once(model):
    """MAML: the gradient of the loss after a step along the gradient."""
    start = {name: p.clone().requires_grad_() for name, p in parameters_of(model).items()}
    first, second = random_ids(BATCH, LENGTH), random_ids(BATCH, LENGTH, 1)
    before = call(model, start, input_ids=first).square().sum()
    grads = torch.autograd.grad(before, start.values(), create_graph=True, allow_unused=True)
    tuned = {
        name: p if grad is None else p - 0.05 * grad
        for (name, p), grad in zip(start.items(), grads, strict=True)
    }
    after = call(model, tuned, input_ids=second).square().sum()
    found = torch.autograd.grad(after, start.values(), allow_unused=True)
    return dict(zip(start, found, strict=True))


def forward_mode(model):
    parameters = parameters_of(model)
    tangents = {name: p.cos() for name, p in parameters.items()}
    ids = random_ids(BATCH, LENGTH)
    return func.jvp(lambda p: call(model, p, input_ids=ids), (parameters,), (tangents,))


@pytest.mark.parametrize("question", [per_sample_gradients, ensemble, tuned_once, forward_mode])
def test_of_the_parameters(pairs, question):
    hf, ours = (flatten(question(model)) for model in pairs["padded"])
    assert_tight(ours, hf)


@pytest.mark.parametrize("cls", CLASSES)
def test_forward_mode_of_every_class(cls):
    model = tiny_model(cls, F64)

    def tangents(m):
        choices = (1,) if "MultipleChoice" in cls.__name__ else ()
        shape = (BATCH, *choices, LENGTH, WIDTH)

        def run(x):
            return flatten(dict(m(inputs_embeds=x, output_attentions=True)))

        return func.jvp(run, (X.view(shape),), (TANGENT.view(shape),))[1]

    assert_tight(tangents(accelerated(model)), tangents(model))


def test_a_backend_that_knows_no_transform_says_which_one_does(pairs):
    model = accelerated(pairs["padded"][0], backend="sdpa")
    with pytest.raises(BackendUnavailable, match=r"torch\.func.*'reference'"):
        func.grad(lambda x: loss(lambda y: model(inputs_embeds=y).logits, x))(X)
    with pytest.raises(BackendUnavailable, match=r"forward-mode.*'reference'"):
        by_hand(lambda x: model(inputs_embeds=x).logits)
    reference = accelerated(pairs["padded"][0], backend="reference")
    by_hand(lambda x: reference(inputs_embeds=x).logits)


# --- dropout --------------------------------------------------------------------------------------


@pytest.fixture
def training():
    return accelerated(tiny_model(XLNetForSequenceClassification, F64, dropout=0.3)).train()


def test_derivatives_under_dropout_are_of_one_function(training):
    """Reverse mode by the kernels and forward mode make the same masks from the same seed."""

    def seeded(x):
        torch.manual_seed(7)
        return training(inputs_embeds=x).logits

    x = X.clone().requires_grad_()
    y, tangent = func.jvp(seeded, (X,), (TANGENT,))
    direction = torch.ones_like(y)
    (gradient,) = torch.autograd.grad(seeded(x), x, direction)
    torch.testing.assert_close((gradient * TANGENT).sum(), (tangent * direction).sum())
    assert not torch.equal(y, training.eval()(inputs_embeds=X).logits)


def test_dropout_under_vmap_is_as_its_randomness_says(training):
    twice = X[:1].expand(2, -1, -1)

    def run(**options):
        return func.vmap(lambda x: training(inputs_embeds=x[None]).logits[0], **options)(twice)

    with pytest.raises(RuntimeError, match="randomness"):
        run()
    same, different = run(randomness="same"), run(randomness="different")
    torch.testing.assert_close(same[0], same[1])
    assert (different[0] - different[1]).abs().max() > 1e-3


def test_attention_alone_draws_a_mask_for_each_element_of_a_vmap(training):
    for name, module in training.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.endswith("rel_attn.dropout"):
            module.p = 0.0
    for layer in training.transformer.layer:
        layer.rel_attn.post_attention = lambda h, vector, layer=layer: vector.flatten(2)
    test_dropout_under_vmap_is_as_its_randomness_says(training)


# --- fake tensors ---------------------------------------------------------------------------------


def shapes(model, inputs):
    outputs = flatten(dict(model(**inputs)))
    sum(x.sum() for x in outputs.values() if x.requires_grad).backward()
    found = {name: (x.shape, x.dtype, x.stride()) for name, x in outputs.items()}
    grads = {
        f"d {n}": None if p.grad is None else p.grad.shape for n, p in model.named_parameters()
    }
    return found | grads


@pytest.mark.parametrize(
    ("kind", "options"),
    [("padded", {}), ("two streams", {}), ("padded", {"output_attentions": True})],
)
def test_fake_tensors_have_the_shapes_of_real_ones(kind, options):
    cls = XLNetForSequenceClassification if kind == "padded" else XLNetLMHeadModel
    hf = tiny_model(cls, dropout=0.1).train()
    ours = accelerated(hf)
    inputs = {"input_ids": random_ids(BATCH, LENGTH), **options, **inputs_of(kind, torch.float32)}
    expected = shapes(hf, inputs)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert shapes(ours, inputs) == expected
    with FakeTensorMode() as mode:
        made = xlnet_fast.accelerate(cls(hf.config).train())
        fakes = tree_map_only(Tensor, mode.from_tensor, inputs)
        assert shapes(made, fakes) == expected


# --- counts of operations -------------------------------------------------------------------------


def operations(model: Any, inputs: dict[str, Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**inputs).logits.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("segmented", [False, True])
def test_operations_are_hugging_faces_without_those_it_wastes(segmented):
    """What it makes beyond: I + J position scores per query instead of J, a projected table for
    each batch element, and four products instead of one for the segment term.
    """
    model = tiny_model(XLNetForSequenceClassification, n_layer=1)
    inputs = {"input_ids": random_ids(BATCH, LENGTH)}
    rows = BATCH * LENGTH * WIDTH
    wasted = 3 * 2 * rows * LENGTH  # position scores, and two gradients
    wasted += 2 * 2 * (BATCH - 1) * (2 * LENGTH) * WIDTH**2  # the table; it has no gradient
    if segmented:
        inputs |= inputs_of("padded")
        heads = model.config.n_head
        wasted += 3 * 2 * (2 * rows - rows)
        wasted += 2 * 2 * (2 * BATCH * LENGTH * LENGTH * heads)  # the one-hot tensor has none
    assert operations(model, inputs) - operations(accelerated(model), inputs) == wasted
