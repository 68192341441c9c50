"""Cases of masked_softmax and concat_memory on a GPU, and the check that each kernel must pass.

A backend's kernels come as a module that has `masked_softmax_forward` and `_backward`, or
`concat_memory_forward`. The Triton kernels run interpreted (`_interpreter_small_ops.py`), those in
CUDA C++ in their emulation, and both on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from xlnet_fast import reference
from xlnet_fast.errors import ArgumentError
from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.operands import SoftmaxInputs
from xlnet_fast.philox import keep_mask
from xlnet_fast.tolerance import assert_within

SENTINEL = 777.0
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """One call of masked_softmax: sizes, terms, mask parts and options."""

    batch: int = 2
    rows: int = 17
    memory: int = 0
    heads: int = 2
    current: int | None = None  # L; default: the number of rows
    mask: tuple[str, ...] = ()
    position: bool = True
    segments: bool = False
    positions: str | None = None
    uni: bool = False  # P = J + 1 columns instead of L + J
    dropout_p: float = 0.0
    layout: str = "guarded"
    bits_batch: int | None = None
    integers: torch.dtype = torch.int64
    nan_hidden: bool = False
    sweeps: bool = False  # as of a row too long for the registers
    window: tuple[int | None, int | None] | None = None
    chunk: int = 1
    spread: float = 3.0

    @property
    def length(self) -> int:
        return self.rows if self.current is None else self.current

    @property
    def keys(self) -> int:
        return self.length + self.memory


EVERY_MASK = ("padding", "ranks", "bits", "causal", "same_length")
CASES = {
    "masks-none": Case(rows=65),
    "masks-padding": Case(rows=33, memory=70, mask=("padding",)),
    "masks-padding-self": Case(rows=65, mask=("padding_left", "see_self"), segments=True),
    "masks-padding-all": Case(mask=("padding_all",), segments=True),
    "masks-padding-all-sweeps": Case(rows=65, mask=("padding_all",), segments=True, sweeps=True),
    "masks-ranks": Case(rows=33, memory=17, mask=("ranks",), segments=True),
    "masks-ranks-self": Case(memory=3, mask=("ranks", "see_self")),
    "masks-bits": Case(memory=5, mask=("bits",)),
    "masks-bits-shared": Case(batch=3, mask=("bits",), bits_batch=1),
    "masks-bits-all": Case(memory=65, mask=("bits_all",), segments=True),
    "masks-causal": Case(rows=33, memory=7, mask=("causal",)),
    "masks-same-length": Case(rows=65, memory=17, mask=("causal", "same_length")),
    "masks-see-self-alone": Case(mask=("see_self",)),
    "masks-every": Case(rows=33, memory=17, mask=EVERY_MASK, segments=True),
    "masks-every-self": Case(rows=33, memory=17, mask=(*EVERY_MASK, "see_self"), segments=True),
    "masks-every-sweeps": Case(
        rows=65, memory=17, mask=(*EVERY_MASK, "see_self"), segments=True, sweeps=True
    ),
    "shapes-one": Case(batch=1, rows=1, heads=1),
    "shapes-one-and-200": Case(batch=1, rows=1, memory=200, segments=True),
    "shapes-130": Case(batch=1, rows=130, heads=1, segments=True),
    "shapes-130-sweeps": Case(batch=1, rows=130, memory=1, heads=1, segments=True, sweeps=True),
    "shapes-2000": Case(batch=1, rows=2, memory=1998, heads=1, segments=True, mask=("padding",)),
    "shapes-scores-alone": Case(rows=33, position=False),
    "shapes-segments-alone": Case(rows=33, position=False, segments=True, integers=torch.int32),
    "shapes-uni": Case(rows=33, memory=17, uni=True, mask=("causal",), segments=True),
    "shapes-uni-unmasked": Case(rows=33, uni=True),  # columns that do not exist count as 0
    "shapes-uni-sweeps": Case(rows=33, memory=17, uni=True, sweeps=True),
    "shapes-positions": Case(memory=5, current=65, positions="any", segments=True),
    "shapes-positions-sweeps": Case(
        memory=5, current=65, positions="absent", segments=True, sweeps=True
    ),
    "shapes-positions-absent": Case(
        memory=9, current=65, positions="absent", mask=("ranks", "see_self"), integers=torch.int32
    ),
    "shapes-positions-uni": Case(
        memory=9, current=33, positions="absent", uni=True, mask=("causal", "padding")
    ),
    "shapes-heads-last": Case(rows=33, memory=7, segments=True, layout="heads last"),
    "shapes-keys-first": Case(rows=17, memory=7, segments=True, layout="keys first"),
    "dropout-plain": Case(memory=70, dropout_p=0.1),
    "dropout-every": Case(
        rows=33, memory=17, dropout_p=0.5, segments=True, mask=("padding", "bits", "causal")
    ),
    "dropout-sweeps": Case(rows=33, memory=17, dropout_p=0.3, segments=True, sweeps=True),
    "dropout-hidden-rows": Case(dropout_p=0.5, mask=("padding_all",)),
    "dropout-positions": Case(current=65, dropout_p=0.9, positions="any"),
    "hostile-nan-hidden": Case(rows=33, mask=("padding", "causal"), nan_hidden=True),
    "hostile-nan-hidden-sweeps": Case(
        rows=33, mask=("padding", "ranks"), nan_hidden=True, sweeps=True
    ),
    "hostile-large-scores": Case(rows=33, memory=3, spread=300.0, segments=True),
    "hostile-large-scores-sweeps": Case(rows=33, spread=300.0, sweeps=True),
    "window-both": Case(rows=33, memory=7, window=(5, 3), chunk=2),
    "window-left": Case(rows=17, memory=7, window=(5, None), chunk=3),
    "window-right": Case(rows=33, window=(None, 2**31 - 1), chunk=10**6),
    "window-nan-hidden": Case(rows=33, memory=70, window=(9, 2), chunk=8, nan_hidden=True),
    "window-padding-self": Case(rows=33, memory=7, window=(9, 0), mask=("padding_all", "see_self")),
    "window-every-sweeps": Case(
        rows=65, memory=17, window=(20, 9), chunk=5, mask=EVERY_MASK, segments=True, sweeps=True,
        dropout_p=0.3,
    ),
    "window-positions": Case(
        memory=9, current=65, positions="absent", window=(7, 3), chunk=10, mask=("ranks",)
    ),
}  # fmt: skip
MEMORY = {
    # layers, rows of hidden, rows of memory (None: no memory), mem_len, reuse_len
    "memory-first-segment": (2, 5, None, 3, None),
    "memory-all": (3, 5, 4, None, None),
    "memory-last": (3, 5, 4, 6, None),
    "memory-only-hidden": (2, 65, 4, 33, None),
    "memory-only-memory": (2, 5, 40, 30, 2),
    "memory-reuse": (1, 130, 17, 100, 65),
    "memory-empty-memory": (2, 3, 0, 7, 0),
    "memory-many-layers": (33, 3, 2, 4, 2),
}
MEMORY_WIDTHS = {"odd": (3, 7), "aligned": (2, 64)}
REFUSED: dict[str, tuple[str, Any, str]] = {
    # the argument, its new value from the right one, the message
    "errors-dtype": ("scores", lambda x: x.double(), "scores has dtype torch.float64"),
    "errors-position": ("position_scores", lambda x: x[:1], "position_scores has shape"),
    "errors-segments": ("segments_q", lambda _: None, "give all three or none"),
    "errors-positions": ("positions", lambda _: torch.zeros(2, 3).long(), "positions has shape"),
    "errors-memory": ("memory_length", lambda _: 18, "memory_length is 18, expected 0 to J = 17"),
    "errors-out": ("out", lambda x: x[..., 1:], "out has shape"),
    "errors-out-layout": ("out", lambda x: x.mT.contiguous().mT, "the last to be 1"),
    "errors-seed": ("dropout_p", lambda _: 0.5, "needs a seed of one int64"),
    "errors-device": ("segments_k", lambda x: x.to("meta"), "segments_k is on meta"),
}


def make_inputs(case: Case, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    """Random arguments of the launcher, without guards."""
    gen = torch.Generator().manual_seed(seed)
    b, n, i, j = case.batch, case.heads, case.rows, case.keys

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=gen) * case.spread).to(dtype)

    x = SimpleNamespace(scores=normal(b, n, i, j), position_scores=None, segment_scores=None)
    x.segments_q = x.segments_k = x.positions = None
    if case.position:
        x.position_scores = normal(b, n, i, j + 1 if case.uni else j + case.length)
    if case.segments:
        x.segment_scores = normal(b, n, i)
        x.segments_q = torch.randint(0, 2, (b, i), generator=gen).to(case.integers)
        x.segments_k = torch.randint(0, 3, (b, j), generator=gen).to(case.integers)
    if case.positions is not None:
        order = [torch.randperm(case.length, generator=gen)[:i] for _ in range(b)]
        absent = torch.rand((b, i), generator=gen) < (0.3 if case.positions == "absent" else 0)
        x.positions = torch.stack(order).masked_fill(absent, -1).to(case.integers)
    x.mask = _make_mask(case, gen)
    x.memory_length, x.scale, x.dropout_p = case.memory, 0.31, case.dropout_p
    x.seed = torch.tensor([0x1234_5678_9ABC + seed]) if case.dropout_p else None
    x.grad_out = torch.randn((b, n, i, j), generator=gen).to(dtype)
    return x


def _make_mask(case: Case, gen: torch.Generator) -> AttentionMask:
    b, i, j = case.batch, case.rows, case.keys
    parts: dict[str, Any] = {
        name: True for name in ("causal", "same_length", "see_self") if name in case.mask
    }
    if case.window is not None:
        parts |= {"window": case.window, "chunk": case.chunk}
    padding = torch.zeros(b, j, dtype=torch.bool)
    if "padding" in case.mask:
        padding[0, j - j // 3 :] = True
        padding[-1, j // 2] = True
    if "padding_left" in case.mask:
        padding[0, : j - 3] = True
    if "padding_all" in case.mask:
        padding[0] = True
    if any(name.startswith("padding") for name in case.mask):
        parts["key_padding"] = padding
    if "ranks" in case.mask:  # rank 0 sees nothing
        parts["rank_q"] = torch.randint(0, 8, (b, i), generator=gen).to(case.integers)
        parts["rank_k"] = torch.randint(0, 8, (b, j), generator=gen).to(case.integers)
    if "bits" in case.mask or "bits_all" in case.mask:
        hidden = torch.rand((case.bits_batch or b, i, j), generator=gen)
        hidden = hidden < (2.0 if "bits_all" in case.mask else 0.5)
        hidden[0, i // 2] = True
        parts["bits"] = pack_bits(hidden)
    return AttentionMask(**parts)


def guarded(x: Tensor, layout: str, device: str, value: float = NAN) -> tuple[Tensor, Tensor]:
    """A buffer of one value on a device, and a view of it that holds `x` (B, N, I, ..)."""
    order = list(range(x.dim()))
    if layout == "heads last":  # (B, I, .., N) in memory
        order = [0, *order[2:], 1]
    if layout == "keys first":  # the last dimension is the second in memory
        order = [0, order[-1], *order[1:-1]]
    sizes = [x.shape[d] + (d != 0) for d in order]
    buffer = torch.full([sizes[0] + 1, *sizes[1:]], value, dtype=x.dtype, device=device)
    inverse = [order.index(d) for d in range(x.dim())]
    view = buffer.permute(inverse)[tuple(slice(0, size) for size in x.shape)]
    return buffer, view.copy_(x)


def _moved(mask: AttentionMask, device: str) -> AttentionMask:
    tensors = (None if x is None else x.to(device) for x in mask.tensors)
    return AttentionMask.from_parts(tensors, mask.flags)


def launch(x: SimpleNamespace, case: Case, kernels: ModuleType, device: str) -> dict[str, Tensor]:
    """Forward and backward between guards; nothing around the results may be written."""
    layout = case.layout
    y = SimpleNamespace(**vars(x))
    names = ("scores", "position_scores", "segment_scores")
    for name in (*names, "grad_out"):
        if (value := getattr(x, name)) is not None:
            # the last dimension of a row must be dense where the kernel is to read it in place
            setattr(y, name, guarded(value, layout, device)[1])
    for name in ("segments_q", "segments_k", "positions", "seed"):
        if (value := getattr(x, name)) is not None:
            setattr(y, name, value.to(device))
    inputs = SoftmaxInputs(
        y.scores, y.position_scores, y.segment_scores, y.segments_q, y.segments_k,
        _moved(x.mask, device), y.positions, y.memory_length, y.scale, y.dropout_p, y.seed,
    )  # fmt: skip
    plain = "guarded" if layout == "keys first" else layout
    plain = "guarded" if plain == "heads last" else plain
    buffer, out = guarded(torch.full_like(x.scores, NAN), plain, device, SENTINEL)
    kernels.masked_softmax_forward(inputs, out)
    results = {"out": out.cpu().clone()}
    out.fill_(SENTINEL)
    assert bool((buffer == SENTINEL).all()), "the kernel wrote outside of `out`"

    buffers, grads = [], []
    for name in names:
        value = getattr(x, name)
        size = 0 if value is None else value.numel()
        buffers.append(torch.full((size + 64,), SENTINEL, dtype=x.scores.dtype, device=device))
        whole = buffers[-1][32 : 32 + size]
        grads.append(whole if value is None else whole.view(value.shape).fill_(NAN))
    kernels.masked_softmax_backward(inputs, out, y.grad_out, grads)
    for name, buffer, grad in zip(names, buffers, grads, strict=True):
        if getattr(x, name) is not None:
            results[f"d {name}"] = grad.cpu().clone()
        grad.fill_(SENTINEL)
        assert bool((buffer == SENTINEL).all()), f"the kernel wrote outside of d {name}"
    return results


def by_reference(x: SimpleNamespace, dtype: torch.dtype) -> dict[str, Tensor]:
    """The reference's probabilities and gradients in `dtype`, on the CPU."""
    leaves = {}
    for name in ("scores", "position_scores", "segment_scores"):
        if (value := getattr(x, name)) is not None:
            leaves[name] = value.detach().to(dtype).requires_grad_()
    names = ("segments_q", "segments_k", "mask", "positions", "memory_length", "scale")
    options = {name: getattr(x, name) for name in (*names, "dropout_p", "seed")}
    out = reference.masked_softmax(**leaves, **options)
    out.backward(x.grad_out.to(dtype))
    return {"out": out.detach()} | {f"d {name}": leaf.grad for name, leaf in leaves.items()}


def check_case(
    name: str, dtype: torch.dtype, kernels: ModuleType, device: str, case: Case | None = None
) -> None:
    """Hold one case to the tolerance rule; ``case`` instead of the one of this name."""
    case = CASES[name] if case is None else case
    x = make_inputs(case, dtype, seed=list(CASES).index(name))
    exact, eager = by_reference(x, torch.float64), by_reference(x, dtype)
    if case.nan_hidden:  # what nobody may look at, for the kernel alone
        rows = torch.arange(case.rows)[None]
        hidden = x.mask.hidden(rows, case.keys, case.memory)
        x.scores = x.scores.masked_fill(hidden[:, None], NAN)
    actual = launch(x, case, kernels, device)
    assert actual.keys() == exact.keys()
    for key, value in actual.items():
        assert_within(value, eager[key], exact[key], f"{name} {dtype} {key}")


def check_memory(
    name: str,
    widths: str,
    dtype: torch.dtype,
    from_: torch.dtype,
    kernels: ModuleType,
    device: str,
) -> None:
    """New memory of all layers, bit for bit; NaN around every input, a sentinel around the end."""
    layers, length, memory_length, mem_len, reuse_len = MEMORY[name]
    batch, width = MEMORY_WIDTHS[widths]

    def tensors(rows: int, kind: torch.dtype) -> list[Tensor]:
        whole = torch.full((layers, rows + 2, batch, width), NAN, dtype=kind, device=device)
        whole[:, 1:-1] = torch.randn(layers, rows, batch, width).to(kind).to(device)
        return list(whole[:, 1:-1].unbind())

    hidden = tensors(length, dtype)
    memory = None if memory_length is None else tensors(memory_length, from_)
    expected = [
        reference.concat_memory(
            h.cpu(), None if memory is None else memory[number].cpu(), mem_len, reuse_len
        )
        for number, h in enumerate(hidden)
    ]
    kept = min(length, reuse_len or length)
    rows = expected[0].shape[0]
    start = kept + (memory_length or 0) - rows
    buffer = torch.full((layers + 1, rows, batch, width), SENTINEL, dtype=dtype, device=device)
    out = buffer[:layers].fill_(NAN)
    kernels.concat_memory_forward(hidden, memory, start, kept, out)
    assert all(torch.equal(a, b) for a, b in zip(out.cpu(), expected, strict=True))
    assert bool((buffer[layers] == SENTINEL).all()), "the kernel wrote outside of `out`"


def check_keep(kernels: ModuleType, device: str, keys: int = 97) -> None:
    """Dropout's mask, read back from uniform probabilities, is `philox.keep_mask` bit for bit."""
    b, n, i, p = 2, 3, 5, 0.37
    scores, out = (torch.zeros(b, n, i, keys, device=device) for _ in range(2))
    seed = torch.tensor(0x7EAD_BEEF_0123_4567, device=device)
    empty = (None,) * 4
    inputs = SoftmaxInputs(scores, *empty, AttentionMask(), None, keys - i, 1.0, p, seed)
    kernels.masked_softmax_forward(inputs, out)
    assert torch.equal(out.cpu() != 0, keep_mask(seed.cpu(), p, b, n, (0, i), keys))


def check_refused(name: str, kernels: ModuleType) -> None:
    """One of `REFUSED` is refused, on CPU tensors."""
    x = make_inputs(Case(segments=True), torch.float32, seed=0)
    arguments = {name: value for name, value in vars(x).items() if name != "grad_out"}
    arguments["out"] = torch.empty_like(x.scores)
    changed, change, message = REFUSED[name]
    arguments[changed] = change(arguments[changed])
    out = arguments.pop("out")
    with pytest.raises(ArgumentError, match=message):
        kernels.masked_softmax_forward(SoftmaxInputs(**arguments), out)


REFUSED_MEMORY: dict[str, tuple[Any, str]] = {
    "errors-layers": (lambda h, m, out: (h, m[:1], out), "1 tensors of memory for 2 layers"),
    "errors-dtype": (lambda h, m, out: (h, m, out.double()), "out has dtype torch.float64"),
    "errors-rows": (
        lambda h, m, out: (h, m, out[:, 1:]), r"out has shape \(2, 6, 2, 4\), expected",
    ),
}  # fmt: skip


def check_refused_memory(name: str, kernels: ModuleType) -> None:
    """One of `REFUSED_MEMORY` is refused."""
    change, message = REFUSED_MEMORY[name]
    hidden = [torch.zeros(4, 2, 4)] * 2
    hidden, memory, out = change(hidden, [torch.zeros(3, 2, 4)] * 2, torch.zeros(2, 7, 2, 4))
    with pytest.raises(ArgumentError, match=message):
        kernels.concat_memory_forward(hidden, memory, 0, 4, out)
