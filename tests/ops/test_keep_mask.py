"""Dropout's mask on a GPU: the Triton kernel where it makes the right bits, else plain ATen.

The op runs on CPU tensors here, with stand-ins for the kernel.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from xlnet_fast import philox
from xlnet_fast.errors import PerformanceWarning
from xlnet_fast.kernels.triton import philox as kernel
from xlnet_fast.ops._contracts import keep_mask as contract
from xlnet_fast.ops.qualification import telling

SIZES = (2, 3, 9, 11, 1, 3)  # heads, rows, keys, batch elements
CPU = torch.device("cpu")


@pytest.fixture
def use_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Tensor]], list[int]]:
    """Put a function in the kernel's place; the list it gives grows by one with each call."""
    monkeypatch.setattr(contract, "_differs", {})
    monkeypatch.setattr(telling, "_told", set())

    def put(function: Callable[..., Tensor]) -> list[int]:
        calls: list[int] = []

        def counted(*args: object) -> Tensor:
            calls.append(1)
            return function(*args)

        monkeypatch.setattr(kernel, "keep_mask", counted)
        return calls

    return put


def right(seed: Tensor, *sizes: object) -> Tensor:
    return philox.keep_mask_aten(seed.reshape(()), *sizes, CPU)


def mask() -> Tensor:
    made: Tensor = torch.ops.xlnet_fast.keep_mask(
        torch.tensor([5]), philox.keep_threshold(0.3), *SIZES
    )
    return made


def expected() -> Tensor:
    heads, *rows, keys, first, last = SIZES
    return philox.keep_mask(5, 0.3, 3, heads, tuple(rows), keys, batch_range=(first, last))


def test_a_right_kernel_is_compared_once_and_used(use_kernel):
    calls = use_kernel(right)
    assert torch.equal(mask(), expected())
    compared = len(contract._SEEDS) * len(contract._CASES)
    assert len(calls) == compared + 1
    mask()
    assert len(calls) == compared + 2


@pytest.mark.parametrize("wrong", [lambda *args: ~right(*args), lambda *args: 1 / 0])
def test_a_wrong_kernel_is_left_alone_with_one_warning(wrong, use_kernel, monkeypatch):
    monkeypatch.delenv("XLNET_FAST_NO_WARN", raising=False)
    calls = use_kernel(wrong)
    with pytest.warns(PerformanceWarning, match="made by plain PyTorch"):
        made = mask()
    assert torch.equal(made, expected())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(mask(), expected())
    assert len(calls) == 1


def test_a_kernel_wrong_in_one_bit_is_found(use_kernel):
    def almost(*args: object) -> Tensor:
        made = right(*args)
        made.view(-1)[-1] ^= True
        return made

    use_kernel(almost)
    with pytest.warns(PerformanceWarning, match="makes other bits"):
        assert torch.equal(mask(), expected())


def test_nothing_is_compared_while_a_graph_is_captured(use_kernel, monkeypatch):
    calls = use_kernel(right)
    monkeypatch.setattr(contract, "_is_capturing", lambda device: True)
    assert torch.equal(mask(), expected())
    assert calls == []
    monkeypatch.setattr(contract, "_is_capturing", lambda device: False)
    mask()
    assert len(calls) > 1


def test_the_op_keeps_its_contract(use_kernel):
    use_kernel(right)
    seed = torch.tensor([5])
    torch.library.opcheck(torch.ops.xlnet_fast.keep_mask.default, (seed, 2**30, *SIZES))


def test_sizes_beyond_32_bits_and_a_missing_triton_are_left_to_aten(monkeypatch):
    monkeypatch.setattr(contract, "_has_triton", lambda: True)
    seed = torch.tensor([5])
    assert contract.keep_mask_on_gpu(seed, 0, 1, (2**31 - 1, 2**31), 4, (0, 1)) is None
    monkeypatch.setattr(contract, "_has_triton", lambda: False)
    assert contract.keep_mask_on_gpu(seed, 0, 1, (0, 1), 4, (0, 1)) is None


def test_tracers_and_seeds_elsewhere_get_plain_aten(monkeypatch):
    """Only a seed that lies where its mask is wanted, and no tracer looking on."""

    def refuse(*args: object) -> Tensor:
        raise AssertionError("asked for a kernel")

    monkeypatch.setattr(philox, "make_on_gpu", refuse)
    meta = torch.zeros((), dtype=torch.long, device="meta")
    assert philox.keep_mask(meta, 0.1, 1, 1, (0, 2), 8).shape == (1, 1, 2, 8)
    monkeypatch.setattr(philox, "_has_kernel", lambda seed, device: True)
    with pytest.raises(AssertionError, match="asked for a kernel"):
        philox.keep_mask(meta, 0.1, 1, 1, (0, 2), 8)
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda seed: philox.keep_mask(seed, 0.1, 1, 1, (0, 2), 8))(torch.tensor(3))
    assert "aten" in graph.code
