"""Attention over cached keys: the kernel and plain PyTorch, against float64 and HF's own layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from cpu_kernels import REAL, isa, needs_kernels
from torch import Tensor
from torch._subclasses import FakeTensorMode
from transformers import XLNetConfig
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.ops import cached_attention as module
from xlnet_fast.ops.cached_attention import cached_attention
from xlnet_fast.tolerance import assert_within

__all__ = ["isa"]  # a fixture
F64 = torch.float64
NAN = float("nan")
OPERANDS = ("q", "keys", "values", "table", "r_w_bias", "r_r_bias")


@dataclass(frozen=True)
class Case:
    """Arguments of a call: ``operands`` in the order of the signature, and the rest."""

    operands: tuple[Tensor, ...]
    options: dict[str, Any]

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, operands=tuple(x.to(dtype) for x in self.operands))

    def run(self) -> Tensor:
        return cached_attention(*self.operands, **self.options)


def make_case(
    rows: int = 3,
    batch: int = 2,
    heads: int = 2,
    dim: int = 16,
    keys: int = 21,
    length: int = 0,
    **options: Any,
) -> Case:
    """Random operands; without options, rows that follow the keys but for two, as a step has it."""
    g = torch.Generator().manual_seed(0)
    length = length or keys + rows + 4
    shapes = ((rows, batch, heads, dim), *2 * [(batch, heads, keys, dim)], (heads, length, dim))
    operands = [torch.randn(shape, generator=g, dtype=F64) for shape in shapes]
    biases = [0.5 * torch.randn(heads, dim, generator=g, dtype=F64) for _ in range(2)]
    rest = {"far": keys + rows, "rows_at": keys - 2, "scale": dim**-0.5}
    return Case((*operands, *biases), rest | options)


def formula(case: Case) -> Tensor:
    """The docstring's formula, pair by pair, in the dtype of the operands."""
    q, keys, values, table, w, r = case.operands
    count, options = keys.shape[2], case.options
    rows_at, keys_at = options["rows_at"], options.get("keys_at")
    if not isinstance(rows_at, Tensor):
        rows_at = rows_at + torch.arange(len(q))
    keys_at = torch.arange(count) if keys_at is None else keys_at
    index = options["far"] - (rows_at[:, None] - keys_at)
    pairs = table[:, index.clamp(0, table.shape[1] - 1)]  # (N, R, J, D)
    scores = torch.einsum("xbnd,bnjd->bnxj", q + w, keys)
    scores = scores + torch.einsum("xbnd,nxjd->bnxj", q + r, pairs)
    scores = (scores * options["scale"]).to(F64 if q.dtype == F64 else torch.float32)
    hidden = options.get("hidden")
    if hidden is not None:
        hidden = hidden.expand(q.shape[1], len(q), count)
        none = hidden.all(2)  # rows that see no key
        finite = torch.where(hidden.all(1)[:, None, :, None] & ~values.isfinite(), 0, values)
        scores = scores.masked_fill(hidden[:, None], float("-inf"))
        scores = scores.masked_fill(none[:, None, :, None], 0.0)
        values = finite
    return torch.einsum("bnxj,bnjd->xbnd", scores.softmax(-1).to(q.dtype), values)


def check(case: Case, dtype: torch.dtype) -> Tensor:
    """Hold a call in a dtype to the tolerance rule, with the formula in that dtype for eager."""
    rounded = case.to(dtype)
    out = rounded.run()
    assert out.is_contiguous()
    assert out.dtype == dtype
    assert_within(out, formula(rounded), formula(rounded.to(F64)))
    return out


def speculative(rows: int = 7, keys: int = 21) -> dict[str, Any]:
    """Positions and visibility of drafted tokens: two runs of keys, rows in runs of unequal length.

    The first two keys are before the table's end, and hidden.
    """
    drafted = 4
    keys_at = torch.cat([torch.arange(keys - drafted), keys - drafted - 1 + torch.arange(drafted)])
    rows_at = keys - 6 + torch.tensor([0, 1, 2, 3, 1, 2, 8])[:rows]
    hidden = torch.zeros(1, rows, keys, dtype=torch.bool)
    hidden[:, :, :2] = True
    hidden[:, :, -drafted:] = ~torch.eye(rows, drafted, dtype=torch.bool)
    return {"rows_at": rows_at, "keys_at": keys_at, "hidden": hidden, "far": keys}


def padded(keys: int = 21) -> Tensor:
    """(B, 1, J): another number of leading keys of each element hidden."""
    return torch.arange(keys) < torch.tensor([[[0]], [[5]]])


def scattered(rows: int = 3, keys: int = 21) -> Tensor:
    """(B, R, J): keys hidden here and there; row 1 of element 0 sees none."""
    hidden = torch.rand(2, rows, keys, generator=torch.Generator().manual_seed(3)) < 0.4
    hidden[0, 1] = True
    return hidden


CASES: dict[str, Callable[[], Case]] = {
    "a step": make_case,
    "one row, one key": lambda: make_case(rows=1, keys=1, rows_at=0),
    "three keys": lambda: make_case(keys=3, rows=2),
    "a vector of keys": lambda: make_case(keys=16, rows=1),
    "the usual width": lambda: make_case(dim=64, keys=150, heads=1),
    "the usual width, many rows": lambda: make_case(dim=64, rows=8, keys=70, heads=1),
    "a narrow head": lambda: make_case(dim=3),
    "a wide head": lambda: make_case(dim=83, batch=1),
    "positions in a tensor": lambda: make_case(rows_at=torch.tensor([20, 21, 22])),
    "rows in any order": lambda: make_case(rows_at=torch.tensor([22, 19, 3]), length=60),
    "keys in any order": lambda: make_case(keys_at=torch.arange(21).flip(0)),
    "keys elsewhere": lambda: make_case(keys_at=torch.arange(21) + 1),
    "drafted tokens": lambda: make_case(rows=7, batch=1, **speculative()),
    "padding": lambda: make_case(hidden=padded()),
    "a mask of all": lambda: make_case(hidden=scattered()),
    "a mask for all": lambda: make_case(hidden=scattered()[1:, :1]),
    "nothing hidden": lambda: make_case(hidden=torch.zeros(1, 1, 21, dtype=torch.bool)),
    "hidden before the table": lambda: make_case(hidden=padded()[1:], far=19),
    "hidden behind the table": lambda: make_case(hidden=padded()[1:].flip(2), far=30),
}


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """One entry for each call of the kernel."""
    made: list[int] = []
    kernel = module.cpu_kernel.cached_attention

    def counted(*arguments: Any) -> Tensor:
        made.append(1)
        return kernel(*arguments)

    monkeypatch.setattr(module.cpu_kernel, "cached_attention", counted)
    return made


@pytest.fixture
def no_kernel(monkeypatch) -> None:
    monkeypatch.setattr(module, "_has_kernel", lambda *_: False)


@needs_kernels
@pytest.mark.parametrize("isa", REAL, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_kernel(name, dtype, isa, calls):
    check(CASES[name](), dtype)
    assert calls == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_plain_pytorch(name, dtype, no_kernel):
    check(CASES[name](), dtype)


@pytest.mark.parametrize("name", CASES)
def test_float64(name):
    case = CASES[name]()
    torch.testing.assert_close(case.run(), formula(case))


@pytest.mark.parametrize("rows", [0, 2])
def test_no_rows_or_no_batch(rows):
    case = make_case(rows=rows, batch=2 - rows)
    assert case.run().shape == case.operands[0].shape


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_step_of_hugging_faces_layer(dtype):
    """Two tokens behind a memory, and the query row of what comes next; HF adds a row that no
    other sees.
    """
    torch.manual_seed(0)
    heads, dim, memory, batch = 2, 8, 19, 3
    config = XLNetConfig(d_model=heads * dim, n_head=heads, d_inner=8, n_layer=1)
    exact = XLNetRelativeAttention(config).to(F64).eval()
    for parameter in exact.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    h, mems = torch.randn(3, batch, heads * dim), torch.randn(memory, batch, heads * dim)
    g, r = torch.randn(1, batch, heads * dim), torch.randn(memory + 6, 1, heads * dim)
    mask = torch.zeros(3, memory + 3, 1, 1)
    mask[:, -1] = 1
    mapping = torch.zeros(1, 3, batch)
    mapping[:, 2] = 1

    def theirs(layer: XLNetRelativeAttention) -> Tensor:
        given = (x.to(layer.q.dtype) for x in (h, g, mask, mask, r.expand(-1, batch, -1)))
        out_h, out_g = layer(
            *given, None, mems=mems.to(layer.q.dtype), target_mapping=mapping.to(layer.q.dtype)
        )[:2]
        return torch.cat([out_h[:2], out_g])

    layer = XLNetRelativeAttention(config).to(dtype).eval()
    layer.load_state_dict(exact.state_dict())
    rows = torch.cat([h[:2], g]).to(dtype)
    seen = torch.cat([mems, h[:2]]).to(dtype)
    with torch.no_grad():
        q = torch.einsum("xbh,hnd->xbnd", rows, layer.q)
        keys, values = (torch.einsum("jbh,hnd->bnjd", seen, w) for w in (layer.k, layer.v))
        table = torch.einsum("pbh,hnd->npd", r.to(dtype), layer.r)
        biases = layer.r_w_bias, layer.r_r_bias
        out = cached_attention(
            q, keys.contiguous(), values.contiguous(), table.contiguous(), *biases,
            far=memory + 3, rows_at=memory, scale=layer.scale,
        )  # fmt: skip
        ours = layer.post_attention(rows, out)
        assert_within(ours, theirs(layer), theirs(exact))


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture(params=[pytest.param("kernel", marks=needs_kernels), "plain PyTorch"])
def form(request, monkeypatch) -> str:
    """Which of the two forms answers."""
    if request.param != "kernel":
        monkeypatch.setattr(module, "_has_kernel", lambda *_: False)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("junk", [NAN, float("inf")])
def test_what_hidden_keys_hold_reaches_nothing(junk, dtype, form):
    """Not even the mean of a row that sees no key."""
    hidden = scattered(rows=5)
    hidden[:, :, 7:11] = True
    case = make_case(rows=5, hidden=hidden)
    for x in case.operands[1:3]:
        x.masked_fill_(hidden.all(1)[:, None, :, None], junk)
    out = check(case, dtype)
    assert out.isfinite().all()
    clean = replace(case, operands=tuple(x.nan_to_num(0.0, 0.0, 0.0) for x in case.operands))
    assert torch.equal(out, clean.to(dtype).run())


@needs_kernels
def test_nan_reaches_the_rows_alone_that_see_it(calls):
    case = make_case(hidden=torch.zeros(1, 3, 21, dtype=torch.bool)).to(torch.float32)
    case.options["hidden"][0, 1, 20] = True
    case.operands[2][0, 0, 20, 1] = NAN
    bad = case.run().isnan()
    assert bad[:, 0, 0, 1].tolist() == [True, False, True]
    assert int(bad.sum()) == 2
    case.operands[1][1, 1, 3, 0] = NAN
    assert case.run()[:, 1, 1].isnan().all()
    assert calls == [1, 1]


LAYOUTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "one of three projections": ("q", lambda x: torch.stack([x, 0 * x, 0 * x], 2)[:, :, 0]),
    "batch first": ("q", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)),
    "batch first keys": ("keys", lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)),
    "positions first": ("table", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)),
    "head dim apart": ("values", lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)),
    "strided bias": ("r_w_bias", lambda x: torch.stack([x, x + 1], 1)[:, 0]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [12, 64])
def test_strides(layout, dim, form):
    name, change = LAYOUTS[layout]
    case = make_case(dim=dim).to(torch.float32)
    moved = [change(x) if n == name else x for n, x in zip(OPERANDS, case.operands, strict=True)]
    given = moved[OPERANDS.index(name)]
    assert not given.is_contiguous()
    out = replace(case, operands=tuple(moved)).run()
    torch.testing.assert_close(out, case.run())
    if layout == "head dim apart":
        return  # which the kernel does not take
    assert form != "kernel" or torch.equal(out, case.run())


@pytest.mark.parametrize("dim", [5, 16, 64])
def test_nothing_but_the_operands_is_read(dim, form):
    """Slots before and behind the slice hold NaN, and so does the table beyond what is needed."""
    case = make_case(dim=dim, keys=27).to(torch.float32)
    operands = list(case.operands)
    for i in (1, 2):
        slots = torch.full((2, 2, 40, dim), NAN)
        slots[:, :, 6:33] = operands[i]
        operands[i] = slots[:, :, 6:33]
    index = case.options["far"] - case.options["rows_at"]
    unread = torch.ones(operands[3].shape[1], dtype=torch.bool)
    unread[index - 2 : index + 27] = False
    operands[3] = operands[3].masked_fill(unread[:, None], NAN)
    wide = torch.full((2, operands[3].shape[1], dim + 3), NAN)
    wide[..., :dim] = operands[3]
    for table in (operands[3], wide[..., :dim]):
        operands[3] = table
        torch.testing.assert_close(replace(case, operands=tuple(operands)).run(), case.run())


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype, set_threads, calls):
    case = make_case(rows=4, batch=3, heads=5, dim=64, keys=200).to(dtype)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(case.run())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert len(calls) == 3


# --- who answers ----------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("looks", ["float64", "gradients", "vmap", "fakes", "autocast", "profiler"])
def test_plain_pytorch_where_somebody_looks_on(looks, calls):
    case = make_case(heads=1, batch=1).to(torch.float32)
    expected = case.run()
    calls.clear()
    if looks == "float64":
        out = case.to(F64).run().float()
    elif looks == "gradients":
        q = case.operands[0].requires_grad_()
        out = case.run()
        assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()
        with torch.no_grad():
            case.run()
        assert calls.pop() == 1
    elif looks == "vmap":
        first, *rest = case.operands
        out = torch.vmap(lambda q: cached_attention(q, *rest, **case.options))(first[None])[0]
    elif looks == "fakes":
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert case.run().shape == expected.shape
        out = expected
    elif looks == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            case.run()
        out = expected
    else:
        with torch.profiler.profile():
            out = case.run()
    torch.testing.assert_close(out, expected)
    assert calls == []


@pytest.mark.parametrize("name", ["a step", "drafted tokens"])
def test_traced_whole(name):
    case = CASES[name]().to(torch.float32)
    compiled = torch.compile(cached_attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*case.operands, **case.options), case.run())
    torch._dynamo.reset()


# --- bad input ------------------------------------------------------------------------------------


def changed(**changes: Any) -> Case:
    """A case with operands or options replaced; a callable is applied to what is there."""
    case = make_case().to(torch.float32)
    operands = dict(zip(OPERANDS, case.operands, strict=True))
    for name in changes.keys() & operands.keys():
        change = changes.pop(name)
        operands[name] = change(operands[name]) if callable(change) else change
    return Case(tuple(operands.values()), case.options | changes)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no tensor": ({"q": None}, ArgumentError, "q must be a tensor"),
    "rank of q": ({"q": lambda x: x[0]}, ShapeError, "q has shape"),
    "integers": ({"q": lambda x: x.int()}, ArgumentError, "q has dtype"),
    "rank of keys": ({"keys": lambda x: x[0]}, ShapeError, "keys has shape"),
    "batch": ({"keys": lambda x: x[:1]}, ShapeError, "keys has shape"),
    "values": ({"values": lambda x: x[:, :, :5]}, ShapeError, "values has shape"),
    "heads": ({"table": lambda x: x[:1]}, ShapeError, "table has shape"),
    "bias": ({"r_r_bias": lambda x: x[0]}, ShapeError, "r_r_bias has shape"),
    "dtypes": ({"table": lambda x: x.half()}, ArgumentError, "table has dtype"),
    "device": ({"values": lambda x: x.to("meta")}, ArgumentError, "values is on meta"),
    "no keys": (
        {"keys": lambda x: x[:, :, :0], "values": lambda x: x[:, :, :0]}, ShapeError, "at least 1",
    ),
    "no table": ({"table": lambda x: x[:, :0]}, ShapeError, "at least 1"),
    "far": ({"far": 1.5}, ArgumentError, "far is 1.5, expected an int"),
    "rows_at": ({"rows_at": 1.5}, ArgumentError, "rows_at is 1.5, expected an int or"),
    "rows_at's size": ({"rows_at": torch.arange(2)}, ShapeError, "rows_at has shape"),
    "rows_at's dtype": ({"rows_at": torch.arange(3).int()}, ArgumentError, "expected int64"),
    "keys_at's size": ({"keys_at": torch.arange(20)}, ShapeError, "keys_at has shape"),
    "no mask": ({"hidden": [True]}, ArgumentError, "hidden is list, expected a bool tensor"),
    "mask's dtype": ({"hidden": torch.ones(1, 1, 21)}, ArgumentError, "hidden is torch.float32"),
    "mask's rank": ({"hidden": padded()[0]}, ShapeError, "hidden has shape"),
    "mask's size": ({"hidden": padded()[..., 1:]}, ShapeError, r"expected \(1 or B, 1 or R, J\)"),
    "far too small": ({"far": 20}, ArgumentError, "rows -1 to 21 of the table"),
    "far too large": ({"far": 27}, ArgumentError, "rows 6 to 28 of the table would be read"),
    "a row too far": (
        {"rows_at": torch.tensor([3, 4, 25])}, ArgumentError, "rows -1 to 41 of the table",
    ),
    "a visible key too far": (
        {"hidden": padded(), "far": 20}, ArgumentError, "rows -1 to 21 of the table",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, form):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        changed(**changes).run()


@needs_kernels
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 2, "float32 or bfloat16"),
        (1, (3, 2, 2, 16, 0, 28), "must be positive"),
        (1, (3, 2, 2), "six numbers"),
        (2, 0, "must not be null"),
        (23, 0, "threads must be at least 1"),
        (24, "sse", "isa must be one of auto"),
    ],
)
def test_the_entry_refuses_what_no_tensor_can_be(place, value, message, monkeypatch):
    arguments: list[Any] = []
    extension = type(
        "Extension", (), {"cached_attention": lambda _, *given: arguments.extend(given)}
    )
    with monkeypatch.context() as patch:
        patch.setattr(_extension, "require", lambda: extension())
        case = make_case().to(torch.float32)
        module.cpu_kernel.cached_attention(case.operands, 24, 19, None, None, 0.25)
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        _extension.require().cached_attention(*arguments)
