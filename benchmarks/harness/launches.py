"""What a GPU would be asked to do, counted without one: launches, live memory, synchronisations.

The code under test runs for real on fake tensors that say they are on a GPU, so its branches are
those of a GPU; :class:`Ledger` sees every operator it calls. An operator of ATen counts as one
launch, views and allocations as none, whatever a kernel library makes of it, but a copy of many
tensors as what it launches; a Triton kernel that is an operator counts as one. The ops of this
package are opened, not counted.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .multi_tensor import copy_launches

_NO_LAUNCH = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "empty",
    "empty_like", "empty_strided", "expand", "lift_fresh", "narrow", "new_empty",
    "new_empty_strided", "permute", "select", "set_", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
}  # fmt: skip
_OPENED = ("rel_attention", "two_stream_attention", "masked_softmax", "concat_memories", "dropout")
"""Ops of this package, whose fakes would hide what they do."""
_LOOKS = {
    "_local_scalar_dense", "_unique2", "equal", "is_nonzero", "item", "masked_select", "nonzero",
}  # fmt: skip


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """A ``FakeTensorMode`` whose tensors may be on "cuda", whatever PyTorch was built for."""
    with _cuda_guard(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@contextlib.contextmanager
def _cuda_guard() -> Iterator[None]:
    """Lets a build of PyTorch without CUDA index fake CUDA tensors.

    Such a build has nothing to switch a thread's CUDA device with, and asks for it before it looks
    whether a tensor is fake. The guard of the "meta" device, which does nothing, stands in.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    cuda, meta = 1, 14  # of c10::DeviceType
    guards = (ctypes.c_void_p * (meta + 1)).in_dll(
        library, "_ZN3c104impl26device_guard_impl_registryE"
    )
    if guards[cuda]:
        yield
        return
    guards[cuda] = guards[meta]
    try:
        yield
    finally:
        guards[cuda] = None


class Ledger(TorchDispatchMode):
    """Counts what runs inside of it; entered inside of :func:`fake_gpu`.

    Operands of an op of this package that are on the CPU are taken for their like on a GPU: the
    backward pass of a whole model, for which PyTorch wants a real device, is counted on fake CPU
    tensors, its attention nonetheless as on a GPU.

    Args:
        cuda: the version of CUDA that PyTorch is taken to be built with, 12 or 13.

    Attributes:
        launches: by operator's name.
        peak_bytes: the most that tensors made inside held at once.
        synchronisations: operators that would wait for the GPU, or that a graph cannot capture.
    """

    def __init__(self, cuda: int = 13) -> None:
        super().__init__()
        self.cuda = cuda
        self.launches: collections.Counter[str] = collections.Counter()
        self.synchronisations: list[str] = []
        self.peak_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._at_most = 0  # bytes alive, with what is gone since it was last looked at

    @property
    def total(self) -> int:
        """Launches of all operators."""
        return self.launches.total()

    def forget(self) -> None:
        """Begin anew: what was made so far is given."""
        self.launches.clear()
        self.synchronisations.clear()
        self._alive.clear()
        self.peak_bytes = self._at_most = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace == "xlnet_fast" and name.removesuffix("_backward") in _OPENED:
            return self._open(func, args, kwargs)
        if func.namespace == "prim":
            return func(*args, **kwargs)  # asks for a property
        with self:  # what is made of other operators arrives whole inside of an op
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        if name not in _NO_LAUNCH:
            count = _launches_of(name, args, self.cuda)
            self.launches[name if func.namespace == "aten" else str(func)] += count
            if _waits(name, args, kwargs, result):
                self.synchronisations.append(str(func))
        self._hold(result, (args, kwargs))
        return result

    def _open(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The op's own code, on a GPU; its result is where its first operand is."""
        place = next(_tensors(args)).device
        moved = tree_map_only(Tensor, lambda x: _like(x, torch.device("cuda", 0)), (args, kwargs))
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        with self:
            result = func.redispatch(keys, *moved[0], **moved[1])
        result = tree_map_only(Tensor, lambda x: _like(x, place), result)
        self._hold(result, (args, kwargs))
        return result

    def _hold(self, result: Any, given: Any) -> None:
        """Enter the memory of results that is not that of what was given."""
        known = {x.untyped_storage()._cdata for x in _tensors(given)}
        for x in _tensors(result):
            storage = x.untyped_storage()
            if storage._cdata not in known:
                _, before = self._alive.get(storage._cdata, (None, 0))
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self._at_most += storage.nbytes() - before
        storage = None  # or it would be found alive
        if self._at_most > self.peak_bytes:  # only then does it matter what is gone
            self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
            self._at_most = sum(size for _, size in self._alive.values())
            self.peak_bytes = max(self.peak_bytes, self._at_most)


def _launches_of(name: str, args: tuple[Any, ...], cuda: int) -> int:
    """Of an operator of ATen.

    Raises:
        LookupError: one over lists of tensors that nobody has counted.
    """
    if name == "_foreach_copy_":
        return copy_launches(*args[:2], cuda)
    if name.startswith("_foreach_"):
        raise LookupError(f"nobody has counted the launches of {name}")
    return 1


def _tensors(x: Any) -> Iterator[Tensor]:
    """Those in nested arguments or results."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from _tensors(part)
    elif isinstance(x, dict):
        yield from _tensors(tuple(x.values()))


def _like(x: Tensor, device: torch.device) -> Tensor:
    if x.device == device:
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)


def _waits(name: str, args: Any, kwargs: Any, result: Any) -> bool:
    """Whether an operator reads values on the host, or moves a tensor to it or from it."""
    if name in _LOOKS:
        return True
    tensors = list(_tensors((args, kwargs, result)))
    if not name.startswith(("_to_copy", "copy")):
        # A single number on the host is an argument of a kernel.
        tensors = [x for x in tensors if x.dim() > 0]
    return len({x.device.type for x in tensors}) > 1
