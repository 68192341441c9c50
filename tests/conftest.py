"""What every test gets: one thread, fixed seeds, no network, and uninitialised memory that shows.

A float tensor from ``torch.empty`` and its kin is full of NaN here, so an element that a kernel
should have written and did not, or should not have read and did, turns a result NaN.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What a user once proved on this machine must not decide what is tested.
os.environ.setdefault("XLNET_FAST_QUALIFICATION", "none")

import forked
import pytest
import torch
from order_of_tests import compiling_first
from torch.utils._device import _device_constructors

# PyTorch notes once which functions `with torch.device("meta")` is for: the real ones, not those
# that poisoned_memory puts in their places, or nothing is made on "meta" from then on.
_device_constructors()
torch.set_num_threads(1)
# For each device that is not there torch.manual_seed notes its caller's stack: a millisecond.
_seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed

try:
    from hypothesis import HealthCheck, settings
except ImportError:
    pass  # a GPU machine may lack it, and no test marked `gpu` needs it
else:
    settings.register_profile(
        "deterministic",
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=25,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("deterministic")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is none, and say so; where one is, order them."""
    if torch.cuda.is_available():
        items[:] = compiling_first(items)
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)


def pytest_collectstart() -> None:
    """What is imported is no garbage: nothing looks for any meanwhile."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported stays: no later collection of garbage looks through it again.

    Every training and every compilation collects, which took a sixth of a short run; Python by
    itself too often for what compilers make, which took a twentieth.
    """
    gc.set_threshold(10_000)
    gc.enable()
    gc.collect()
    gc.freeze()
    forked.start()


def pytest_unconfigure() -> None:
    """Or nanobind would tell at the end of leaks that are none."""
    gc.unfreeze()


@pytest.fixture
def much_memory() -> Iterator[None]:
    """For tests that take much of a GPU's memory: of several processes one at a time has them."""
    import fcntl
    import tempfile

    with open(os.path.join(tempfile.gettempdir(), "xlnet_fast_much_memory"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        torch.cuda.empty_cache()


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(allocate)
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        x = allocate(*args, **kwargs)
        # One of another type, of a compiler for example, has no memory.
        if type(x) is torch.Tensor and (x.is_floating_point() or x.is_complex()):
            with torch.no_grad():
                x.fill_(float("nan"))
        return x

    return poisoned


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what ``torch.empty``, ``empty_like``, ``empty_strided`` and ``new_empty`` give."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, _poisoned(getattr(torch.Tensor, name)))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The same random numbers in every run, whatever ran before."""
    _seed(0)
