"""The C++ kernel of dropout: every instruction set, against the mask made first, bit for bit."""

from __future__ import annotations

import pytest
import torch
from cpu_kernels import DTYPES, ISAS, REAL, each_isa, isa, needs_kernels

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.cpu import dropout as cpu_dropout
from xlnet_fast.kernels.cpu import instruction_sets
from xlnet_fast.ops import dropout as op
from xlnet_fast.philox import keep_mask_aten, keep_threshold

__all__ = ["isa"]  # a fixture
pytestmark = needs_kernels
SEED = -0x1234_5678_9ABC_DEF1  # both words of it count, and its sign
SENTINEL = 77.0
INTEGERS = {4: torch.int32, 2: torch.int16}
KEPT, RATES = 0.3, (1e-12, 2.0**-32, 0.1, 0.5, 0.999, 1.0 - 2.0**-33)
# A buffer holds 4096 elements: several rows of it, one, or a part of one.
SHAPES = [
    (1,), (3,), (4097,), (1, 1), (5000, 1), (300, 17), (64, 64), (65, 65), (2, 9, 513),
    (3, 1, 4095), (2, 4096), (2, 4099), (2, 12_301), (100_003,),
]  # fmt: skip


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def kernel(x, p=KEPT, seed=SEED):
    """What the kernel gives, into memory of NaN with a guard on both sides."""
    whole = torch.full((x.numel() + 128,), SENTINEL, dtype=x.dtype)
    out = whole[64:-64].view(x.shape).fill_(torch.nan)
    cpu_dropout.dropout(x, p, seed, out)
    result = out.clone()
    out.fill_(SENTINEL)
    assert bool((whole == SENTINEL).all()), "the kernel wrote outside of its result"
    return result


def mask(x, p, seed=SEED):
    """By plain PyTorch."""
    width = x.shape[-1]
    rows = (0, x.numel() // width)
    kept = keep_mask_aten(seed, keep_threshold(p), 1, rows, width, (0, 1), torch.device("cpu"))
    return kept.view(x.shape)


def expected(x, p=KEPT, seed=SEED):
    """The four passes that the kernel stands for."""
    return torch.where(mask(x, p, seed), x, 0.0).contiguous().mul_(1.0 / (1.0 - p))


def assert_same_bits(actual, wanted):
    """Also the sign of a zero; of NaN only where it is."""
    assert actual.dtype == wanted.dtype
    assert actual.shape == wanted.shape
    assert torch.equal(actual.isnan(), wanted.isnan())
    kind = INTEGERS[actual.element_size()]
    actual, wanted = (t.nan_to_num(0.0, torch.inf, -torch.inf).view(kind) for t in (actual, wanted))
    assert torch.equal(actual, wanted)


@each_isa
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_of_the_mask_made_first(isa, shape):
    for dtype in DTYPES:
        x = random(*shape, dtype=dtype)
        assert_same_bits(kernel(x), expected(x))


@each_isa
@pytest.mark.parametrize("p", RATES)
def test_rates(isa, p):
    for dtype in DTYPES:
        x = random(40, 1001, dtype=dtype)
        assert_same_bits(kernel(x, p), expected(x, p))


@each_isa
def test_every_half_rounds_as_in_pytorch(isa):
    """Denormals, overflow, ties and both zeros; infinity and NaN where they are kept."""
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(64, 1024)
    for dtype in (torch.bfloat16, torch.float16):
        for p in (0.1, 0.4, 0.999):
            assert_same_bits(kernel(bits.view(dtype), p), expected(bits.view(dtype), p))


@each_isa
def test_what_is_dropped_was_no_number(isa):
    for dtype in DTYPES:
        for value in (torch.nan, torch.inf, -torch.inf, -0.0):
            x = torch.full((33, 65), value, dtype=dtype)
            actual = kernel(x)
            assert_same_bits(actual, expected(x))
            dropped = actual[~mask(x, KEPT)]
            assert 600 < dropped.numel() < 700
            assert not bool(dropped.view(INTEGERS[dropped.element_size()]).any()), "positive zeros"


@each_isa
def test_the_same_bits_on_any_number_of_threads(isa):
    before = torch.get_num_threads()
    try:
        for shape in ((300, 257), (1, 70_001), (70_001,)):
            x, results = random(*shape), []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(kernel(x))
            assert all(torch.equal(result, results[0]) for result in results)
            assert torch.equal(results[0], expected(x))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "x",
    [
        random(5, 3, 37).transpose(0, 1),
        random(37).expand(3, 5, 37),
        random(3, 5, 74)[..., ::2],
        random(3, 9, 37)[:, 2:7],
        torch.imag(torch.complex(random(3, 37), random(3, 37, seed=1)).conj()),
    ],
    ids=["transposed", "expanded", "every second", "rows apart", "negated"],
)
def test_what_lies_otherwise(x):
    assert torch.equal(kernel(x), expected(x))


def test_a_seed_is_all_of_its_bits():
    x = random(16, 64)
    results = [kernel(x, seed=seed) for seed in (1, 2, 1 << 32, -1, 2**63 - 1, -(2**63))]
    for i, result in enumerate(results):
        assert not any(torch.equal(result, other) for other in results[:i])
    assert torch.equal(results[3], expected(x, seed=-1))


# ---- the op ----


@pytest.fixture
def calls(monkeypatch):
    """The sizes that the kernel is called with."""
    found, real = [], cpu_dropout.dropout

    def counted(x, p, seed, out):
        found.append(tuple(x.shape))
        real(x, p, seed, out)

    monkeypatch.setattr(cpu_dropout, "dropout", counted)
    return found


def test_the_op_takes_the_kernel_in_both_passes(calls):
    for dtype in DTYPES:
        x = random(6, 33, dtype=dtype).requires_grad_()
        out = op.dropout(x, 0.4, torch.tensor([SEED]))
        assert_same_bits(out.detach(), expected(x.detach(), 0.4))
        gradient = random(6, 33, dtype=dtype, seed=1)
        out.backward(gradient)
        assert_same_bits(x.grad, expected(gradient, 0.4))
    assert calls == [(6, 33)] * 6


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_program_takes_the_kernel(calls, dynamic):
    program = torch.compile(
        lambda x, seed: op.dropout(x, 0.4, seed) + 1, backend="aot_eager", fullgraph=True,
        dynamic=dynamic,
    )  # fmt: skip
    x = random(6, 33)
    assert torch.equal(program(x, torch.tensor([SEED])), expected(x, 0.4) + 1)
    assert calls == [(6, 33)]


def test_all_else_takes_plain_code(calls):
    seed = torch.tensor([SEED])
    x = random(6, 33)
    assert torch.equal(op.dropout(x.double(), 0.4, seed), expected(x.double(), 0.4))
    mapped = torch.vmap(lambda t: op.dropout(t, 0.4, seed))(x)
    assert torch.equal(mapped[2], expected(x[2], 0.4))
    slope = torch.func.grad(lambda t: op.dropout(t, 0.4, seed).sum())(x)
    assert torch.equal(slope, expected(torch.ones_like(x), 0.4))
    _, tangent = torch.func.jvp(lambda t: op.dropout(t, 0.4, seed), (x,), (x,))
    assert torch.equal(tangent, expected(x, 0.4))
    assert op.dropout(x[:0], 0.4, seed).shape == (0, 33)
    assert op.dropout(x[:, :0], 0.4, seed).shape == (6, 0)
    assert calls == []


def test_a_gradient_without_memory():
    zeros = torch._efficientzerotensor((6, 33))
    assert not bool(torch.ops.xlnet_fast.dropout(zeros, torch.tensor([SEED]), 0.4).any())
    with pytest.raises(ValueError, match="x and out must not be null"):
        cpu_dropout.dropout(zeros, 0.4, 1, torch.empty(6, 33))


def test_without_the_extension(calls, monkeypatch):
    x, seed = random(6, 33), torch.tensor([SEED])
    monkeypatch.setattr(_extension, "_find", lambda: (None, "not built"))
    assert torch.equal(op.dropout(x, 0.4, seed), expected(x, 0.4))
    assert calls == []


# ---- misuse ----

REFUSED = {
    "float64": (random(3, 8).double(), random(3, 8), ArgumentError, "x has dtype torch.float64"),
    "another device": (random(3, 8).to("meta"), random(3, 8), ArgumentError, "x .* on meta"),
    "another dtype": (random(3, 8), random(3, 8).half(), ArgumentError, "out has dtype"),
    "another shape": (random(3, 8), random(8, 3), ShapeError, r"out has shape \(8, 3\)"),
    "gaps": (random(3, 8), random(8, 3).t(), ArgumentError, "out is not contiguous"),
    "no element": (random(0, 8), random(0, 8), ShapeError, r"x has shape \(0, 8\)"),
    "no dimension": (torch.tensor(1.0), torch.tensor(1.0), ShapeError, r"x has shape \(\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    x, out, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        cpu_dropout.dropout(x, 0.1, 0, out)


@pytest.mark.parametrize("p", [-0.1, 1.0, torch.nan])
def test_no_such_rate(p):
    with pytest.raises(ArgumentError, match=r"must be in \[0, 1\)"):
        cpu_dropout.dropout(random(3, 8), p, 0, random(3, 8))


WRONG = {
    "no rows": ({"rows": 0}, "must be positive"),
    "a negative width": ({"width": -8}, "must be positive"),
    "too many rows": ({"rows": 1 << 32}, r"rows must be below 2\*\*32"),
    "too wide": ({"width": 1 << 34}, r"width must be below 2\*\*34"),
    "too much": ({"rows": 1 << 31, "width": 1 << 33}, r"rows times width must be below 2\*\*60"),
    "no x": ({"x": 0}, "must not be null"),
    "no out": ({"out": None}, "must not be null"),
    "no such dtype": ({"dtype": 3}, "dtype must be 0, 1 or 2"),
    "misspelt": ({"widht": 8}, "no such name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_entry_refuses_what_no_tensor_can_be(name):
    x, out = random(3, 8), torch.empty(3, 8)
    fields = {"rows": 3, "width": 8, "x": x.data_ptr(), "out": out.data_ptr()}
    entry = _extension.require().dropout
    entry(fields, 1, "auto")
    change, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        entry(fields | change, 1, "auto")
    with pytest.raises(ValueError, match="threads must be at least 1"):
        entry(fields, 0, "auto")
    with pytest.raises(ValueError, match="isa must be one of auto, baseline"):
        entry(fields, 1, "mmx")


def test_all_instruction_sets_are_there():
    x = random(50, 130)
    for name in ("auto", *ISAS):
        with instruction_sets.using(name):
            assert torch.equal(kernel(x), expected(x))
    assert REAL[0] == "baseline"
