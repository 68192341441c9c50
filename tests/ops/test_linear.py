"""The linear op on our kernels, whatever this machine would take; and when they are not taken."""

from __future__ import annotations

import sys

import pytest
import torch
from cpu_kernels import needs_kernels
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils import checkpoint

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.cpu import instruction_sets
from xlnet_fast.kernels.cpu import linear as cpu_linear
from xlnet_fast.ops._dispatch import Choice
from xlnet_fast.ops.linear import library_for, linear
from xlnet_fast.tolerance import assert_within

module = sys.modules["xlnet_fast.ops.linear"]
pytestmark = needs_kernels
needs_bf16 = pytest.mark.skipif(
    needs_kernels.args[0] or not cpu_linear.takes(torch.bfloat16, 2),
    reason="no instruction of this CPU multiplies bf16",
)
F64 = torch.float64


@pytest.fixture(autouse=True)
def products(monkeypatch):
    """Our kernels are chosen on any machine; the list names what each product is fused with."""
    calls, real = [], cpu_linear.linear

    def counted(x, weight, bias, residual, gelu, out):
        calls.append("gelu" if gelu else "none" if residual is None else "add")
        real(x, weight, bias, residual, gelu, out)

    monkeypatch.setattr(module, "_chosen", Choice("cpu", "by the test"))
    monkeypatch.setattr(module, "LEAST_PACKED_WEIGHT", 0)
    monkeypatch.setattr(module, "LEAST_WEIGHT", 0)
    monkeypatch.setattr(cpu_linear, "linear", counted)
    return calls


def random(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def exact(x, weight, bias=None, activation=None, residual=None):
    """In the dtype given, by PyTorch's own functions."""
    out = F.linear(x, weight, bias)
    if activation is not None:
        return F.gelu(out)
    return out if residual is None else out + residual


def check(x, weight, bias=None, **options):
    """Hold the result to the tolerance rule; nothing that goes in may change."""
    given = [t for t in (x, weight, bias, options.get("residual")) if t is not None]
    before = [t.clone() for t in given]
    assert library_for(x, weight, bias, options.get("residual")) == "cpu"
    double = [None if t is None else t.double() for t in (x, weight, bias)]
    more = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    actual = linear(x, weight, bias, **options)
    assert_within(actual, exact(x, weight, bias, **options), exact(*double, **more))
    for tensor, old in zip(given, before, strict=True):
        assert torch.equal(tensor, old)


OPERANDS = {
    "plain": lambda: (random(33, 24), random(17, 24)),
    "three dimensions": lambda: (random(5, 3, 24), random(17, 24)),
    "batch first seen from the sequence": lambda: (
        random(3, 5, 24).transpose(0, 1),
        random(17, 24),
    ),
    "four dimensions": lambda: (random(2, 3, 5, 24), random(17, 24)),
    "weight of the other order": lambda: (random(5, 3, 24), random(24, 17).t()),
    "both of the other order": lambda: (random(24, 33).t(), random(24, 17).t()),
    "expanded x": lambda: (random(1, 24).expand(33, 24), random(17, 24)),
    "one number for x": lambda: (random(1, 1).expand(33, 24), random(17, 24)),
    "every other column of x": lambda: (random(33, 48)[:, ::2], random(17, 24)),
    "every other column of weight": lambda: (random(33, 24), random(17, 48)[:, ::2]),
    "every other row of weight": lambda: (random(33, 24), random(34, 24)[::2]),
    "part of weight": lambda: (random(33, 24), random(40, 50)[3:20, 5:29]),
    "expanded weight": lambda: (random(33, 24), random(1, 24).expand(17, 24)),
    "one row": lambda: (random(1, 24), random(17, 24)),
    "one column": lambda: (random(33, 24), random(1, 24)),
    "one term": lambda: (random(33, 1), random(17, 1)),
    "a long sum": lambda: (random(130, 3072), random(67, 3072, seed=3)),
    "parameter": lambda: (random(33, 24), nn.Parameter(random(17, 24))),
}
BIASES = {
    "none": lambda n: None,
    "plain": lambda n: random(n, seed=1),
    "every other": lambda n: random(2 * n, seed=1)[::2],
    "one number": lambda n: random(1, seed=1).expand(n),
}


@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.parametrize("bias", BIASES)
def test_product(operands, bias, products):
    x, weight = OPERANDS[operands]()
    with torch.no_grad():
        check(x, weight, BIASES[bias](weight.shape[0]))
        check(x, weight, BIASES[bias](weight.shape[0]), activation="gelu")
        out = x.shape[:-1] + weight.shape[:1]
        check(x, weight, BIASES[bias](weight.shape[0]), residual=random(*out, seed=2))
    assert products == ["none", "gelu", "add"]


@pytest.mark.parametrize(
    "residual",
    [
        lambda: random(5, 3, 17).transpose(0, 1),
        lambda: random(1, 1, 17).expand(3, 5, 17),
        lambda: random(3, 5, 34)[..., ::2],
    ],
)
def test_strides_of_the_residual(residual):
    check(random(3, 5, 24), random(17, 24), random(17), residual=residual())


@pytest.mark.parametrize(("rows", "terms", "columns"), [(0, 24, 17), (33, 0, 17), (33, 24, 0)])
def test_product_of_nothing(rows, terms, columns):
    x, weight, bias = random(2, rows, terms), random(columns, terms), random(columns)
    residual = random(2, rows, columns)
    assert library_for(x, weight, bias) == "cpu"
    for options in ({}, {"activation": "gelu"}, {"residual": residual}):
        actual = linear(x, weight, bias, **options)
        assert torch.equal(actual, exact(x, weight, bias, **options))


@needs_bf16
def test_bf16_takes_our_kernels_for_few_rows(products):
    x, weight, bias = (random(*s, dtype=torch.bfloat16) for s in ((49, 96), (80, 96), (80,)))
    check(x[:48], weight, bias)
    check(x[:48], weight, activation="gelu")
    check(x[:48].view(2, 24, 96), weight, residual=random(2, 24, 80, dtype=torch.bfloat16))
    assert library_for(x, weight, bias) == "aten"
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert library_for(x[:4, 1:], weight[:, 1:], bias) == "aten"  # no pairs
    check(x[:4], weight.t().contiguous().t(), bias)
    assert products == ["none", "gelu", "add", "none"]


def test_gelu_of_what_is_large_or_no_number():
    x = torch.tensor([0.0, -10.0, 10.0, 88.0, -88.0, 3e38, -3e38, torch.nan])[:, None]
    actual = linear(x, torch.ones(1, 1), activation="gelu")
    expected = F.gelu(x.double())
    torch.testing.assert_close(actual.double(), expected, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_the_same_bits_again():
    x, weight = random(130, 1001), random(67, 1001)
    first = linear(x, weight, activation="gelu")
    assert all(torch.equal(linear(x, weight, activation="gelu"), first) for _ in range(3))


def grads_of(function, tensors, dtype=torch.float32):
    """Gradients, and gradients of their squares, under a fixed linear loss."""
    leaves = [t.detach().to(dtype).clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    loss = (out * random(*out.shape, seed=9).to(dtype)).sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, allow_unused=True)
    return [g.detach() for g in (*first, *(s for s in second if s is not None))]


@pytest.mark.parametrize("kind", ["product", "gelu", "residual", "the op's own gelu"])
def test_gradients_and_their_gradients(kind, products):
    tensors = [random(5, 3, 24), random(17, 24, seed=1), random(17, seed=2)]
    if kind == "residual":
        tensors.append(random(5, 3, 17, seed=3))

    def ours(x, weight, bias, residual=None):
        if kind == "the op's own gelu":
            return torch.ops.xlnet_fast.linear(x, weight, bias, None, "gelu")
        activation = "gelu" if kind == "gelu" else None
        return linear(x, weight, bias, activation=activation, residual=residual)

    def theirs(x, weight, bias, residual=None):
        return exact(x, weight, bias, "gelu" if "gelu" in kind else None, residual)

    actual = grads_of(ours, tensors)
    eager, oracle = grads_of(theirs, tensors), grads_of(theirs, tensors, F64)
    assert len(actual) == len(oracle)
    for name, values in enumerate(zip(actual, eager, oracle, strict=True)):
        assert_within(*values, f"gradient {name}")
    assert len(products) >= 2  # the gradient of x is ours too


@pytest.mark.parametrize("wanted", range(4))
def test_gradient_of_one_operand(wanted):
    """Also from a gradient without memory of its own, which a plain sum gives."""
    tensors = [random(5, 3, 24), random(17, 24), random(17), random(5, 3, 17)]
    tensors[wanted].requires_grad_()
    x, weight, bias, residual = tensors
    out = linear(x, weight, bias, residual=residual)
    assert out.requires_grad
    (grad,) = torch.autograd.grad(out.sum(), tensors[wanted])
    double = [t.detach().double() for t in tensors]
    double[wanted].requires_grad_()
    (oracle,) = torch.autograd.grad(exact(*double[:3], residual=double[3]).sum(), double[wanted])
    torch.testing.assert_close(grad.double(), oracle, rtol=1e-5, atol=1e-5)


def test_gradient_through_a_checkpoint():
    x, weight = random(33, 24).requires_grad_(), random(17, 24).requires_grad_()
    direct = torch.autograd.grad(linear(x, weight).square().sum(), (x, weight))
    again = checkpoint.checkpoint(linear, x, weight, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(again.square().sum(), (x, weight)), direct, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("activation", "has_residual"), [("none", False), ("none", True), ("gelu", False)]
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_opcheck(activation, has_residual, has_bias):
    x = random(3, 5, 24).transpose(0, 1).requires_grad_()
    weight = random(24, 17).t().requires_grad_()
    bias = random(17).requires_grad_() if has_bias else None
    residual = random(5, 3, 17).requires_grad_() if has_residual else None
    args = (x, weight, bias, residual, activation)
    torch.library.opcheck(torch.ops.xlnet_fast.linear.default, args, atol=1e-5, rtol=1e-5)


class TestCompiled:
    @pytest.fixture(autouse=True)
    def fresh_dynamo(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.fixture
    def poisoned_memory(self):
        """Not here: a traced program would contain the poison."""

    @pytest.mark.parametrize("dynamic", [None, True])
    @pytest.mark.parametrize("training", [False, True])
    def test_one_graph(self, dynamic, training, products):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(linear, fullgraph=True, dynamic=dynamic, backend=counter)
        weight, bias = random(17, 24).requires_grad_(training), random(17)
        for rows in (33, 33, 7, 130) if dynamic else (33, 33):
            x = random(rows, 24).requires_grad_(training)
            torch.testing.assert_close(
                compiled(x, weight, bias, activation="gelu"),
                F.gelu(F.linear(x, weight, bias)), rtol=1e-5, atol=1e-5,
            )  # fmt: skip
            if training:
                actual, expected = (
                    torch.autograd.grad(f(x, weight, bias).square().sum(), (x, weight))
                    for f in (compiled, F.linear)
                )
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        assert counter.frame_count == 1 + training
        assert products

    @pytest.mark.parametrize("strict", [False, True])
    def test_export_is_plain_aten(self, strict):
        class Layer(nn.Module):
            def forward(self, x, weight):
                return linear(x, weight, activation="gelu")

        operands = (random(33, 24), random(17, 24))
        program = torch.export.export(Layer(), operands, strict=strict)
        assert "aten.linear.default" in str(program.graph)
        assert "xlnet_fast" not in str(program.graph)

    def test_traced_program_is_plain_aten(self):
        traced = torch.jit.trace(lambda x, w: linear(x, w), (random(33, 24), random(17, 24)))
        assert "aten::linear" in str(traced.graph)
        assert "xlnet_fast::" not in str(traced.graph)


class Wrapped(torch.Tensor):
    """A subclass that does what a tensor does, as quantised and distributed ones do more."""


ELSEWHERE = {
    "float64": lambda: (random(33, 24, dtype=F64), random(17, 24, dtype=F64)),
    "fp16": lambda: (random(33, 24).half(), random(17, 24).half()),
    "subclass of x": lambda: (random(33, 24).as_subclass(Wrapped), random(17, 24)),
    "subclass of weight": lambda: (random(33, 24), random(17, 24).as_subclass(Wrapped)),
    "parameter of a subclass": lambda: (
        random(33, 24),
        nn.Parameter(random(17, 24).as_subclass(Wrapped)),
    ),
    "meta": lambda: (random(33, 24).to("meta"), random(17, 24).to("meta")),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_aten_takes_the_rest(name, products):
    x, weight = ELSEWHERE[name]()
    assert library_for(x, weight) == "aten"
    out = linear(x, weight)
    assert out.shape == (33, 17)
    assert out.dtype == x.dtype
    assert products == []


def test_autocast_casts_as_ever(products):
    x, weight, bias = random(33, 24), random(17, 24), random(17)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)
    assert products == []


def test_a_broadcast_residual_is_added_by_aten(products):
    x, weight, residual = random(5, 3, 24), random(17, 24), random(1, 3, 17)
    assert torch.equal(linear(x, weight, residual=residual), F.linear(x, weight) + residual)
    assert products == []


@pytest.mark.parametrize(("bound", "rows"), [("LEAST_WEIGHT", 96), ("LEAST_PACKED_WEIGHT", 97)])
def test_small_layers_are_left_to_aten(bound, rows, products, monkeypatch):
    x, weight = random(rows, 24), random(17, 24)
    monkeypatch.setattr(module, "LEAST_PACKED_WEIGHT", 1 << 30)
    monkeypatch.setattr(module, bound, 24 * 17 + 1)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert products == []
    monkeypatch.setattr(module, bound, 24 * 17)
    linear(x, weight)
    assert products == ["none"]


@needs_bf16
def test_an_op_traced_elsewhere_runs_where_there_is_no_kernel(products):
    """On a CPU without the instruction, or of an odd number of terms, the op is ATen's."""
    x, weight = random(33, 24, dtype=torch.bfloat16), random(17, 24, dtype=torch.bfloat16)
    with instruction_sets.using("baseline"):
        out = torch.ops.xlnet_fast.linear(x, weight, None, None, "gelu")
    assert torch.equal(out, F.gelu(F.linear(x, weight)))
    out = torch.ops.xlnet_fast.linear(x[:, 1:], weight[:, 1:], None, random(33, 17), "none")
    assert torch.equal(out, F.linear(x[:, 1:], weight[:, 1:]) + random(33, 17))
    assert products == []


def test_transforms_and_forward_derivatives():
    x, weight, tangent = random(33, 24), random(17, 24), random(33, 24, seed=1)
    expected = F.linear(x, weight)
    assert torch.equal(torch.vmap(linear, (0, None))(x[:, None], weight)[:, 0], expected)
    _, moved = torch.func.jvp(lambda t: linear(t, weight), (x,), (tangent,))
    torch.testing.assert_close(moved, F.linear(tangent, weight))
    grad = torch.func.grad(lambda t: linear(t, weight).square().sum())(x)
    torch.testing.assert_close(grad, 2 * expected @ weight)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        out = torch.autograd.forward_ad.unpack_dual(linear(dual, weight))
    torch.testing.assert_close(out.tangent, F.linear(tangent, weight))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((random(3, 4), random(5, 4), None, "tanh"), ArgumentError, "expected None or 'gelu'"),
        ((random(3, 4), random(5, 4), random(3, 5), "gelu"), ArgumentError, "one of activation"),
        ((random(3, 4), random(4, 5), None, None), ShapeError, r"x has shape \(3, 4\)"),
        ((random(4), random(5, 4), None, None), ShapeError, "at least two dimensions"),
        ((random(3, 4), random(5), None, None), ShapeError, "expected"),
        ((random(3, 4), random(5, 4), random(3, 4), None), ShapeError, "expected width 5"),
    ],
)
def test_bad_input(arguments, error, message):
    x, weight, residual, activation = arguments
    with pytest.raises(error, match=message):
        linear(x, weight, activation=activation, residual=residual)
