"""Counter-based dropout masks: the same bits on every backend, for any chunk, in any order.

Element (b, n, i, j) of the attention probabilities takes word j % 4 of

    philox4x32-10(counter = (j // 4, i, b*N + n, 0), key = (seed & 0xffffffff, seed >> 32))

and is kept where that word, an unsigned 32-bit integer, is at least floor(p * 2**32). Nothing
depends on the order of evaluation, so a backward pass recomputes its mask instead of saving it, and
a kernel working on a tile makes that tile's mask alone. Philox is from Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3" (SC 2011); `tl.philox` in Triton and Random123 compute the same
function.

Four implementations give identical bits: the compiled extension (CPU), a Triton kernel (GPU,
registered by :mod:`xlnet_fast.ops`), JAX (registered by :mod:`xlnet_fast.tpu`) and plain ATen in
int64 (any device, traceable, no host synchronisation).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from xlnet_fast import _extension, lowering
from xlnet_fast.errors import ArgumentError, ShapeError

_LOW32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
_ROUNDS = 10
_INT64 = range(-(2**63), 2**63)

make_on_gpu: Callable[..., Tensor | None] | None = None
"""What makes a mask where its seed is, on a GPU or under JAX, with the arguments of
:func:`keep_mask_aten` but the device; it may answer None. Set by whoever has a kernel: this layer
knows none."""


def draw_seed(device: torch.device | str) -> Tensor:
    """A seed of shape (1,), drawn by a device's generator without waiting for it.

    int64; of JAX, which has none unless ``jax_enable_x64`` is on, its own integers.
    """
    is_jax = torch.device(device).type == "jax"
    return torch.randint(0, 2**31 - 1 if is_jax else 2**62, (1,), device=device)


def keep_threshold(p: float) -> int:
    """The least 32-bit word that is kept at dropout probability `p`: floor(p * 2**32).

    Raises:
        ArgumentError: unless 0 <= p < 1 (NaN included).
    """
    if not 0.0 <= p < 1.0:
        raise ArgumentError(f"dropout probability must be in [0, 1), got {p!r}")
    return int(p * 2.0**32)


def keep_mask(
    seed: Tensor | int,
    p: float,
    batch: int,
    heads: int,
    rows: slice | tuple[int, int],
    keys: int,
    *,
    device: torch.device | str | None = None,
    batch_range: tuple[int, int] | None = None,
) -> Tensor:
    """The dropout keep mask of some rows of the attention probabilities, True = kept.

    Args:
        seed: int64 tensor of one element (on a device of JAX int32 as well), or an int that fits
            int64.
        p: probability of dropping an element, 0 <= p < 1.
        batch: B.
        heads: N.
        rows: the query rows (i0, i1) or slice(i0, i1), end excluded.
        keys: J.
        device: where the mask is made; default: where `seed` is, the CPU for an int.
        batch_range: (b0, b1), the batch elements wanted, end excluded; default all.

    Returns:
        bool, contiguous, shape (b1 - b0, N, i1 - i0, J). Not scaled: the caller multiplies what is
        kept by 1 / (1 - p).

    Raises:
        ArgumentError: p outside [0, 1), a seed of another dtype, a range outside its bounds.
        ShapeError: a seed of more or less than one element.
    """
    threshold = keep_threshold(p)
    if isinstance(rows, slice):
        if rows.start is None or rows.stop is None or rows.step not in (None, 1):
            raise ArgumentError(f"rows must be slice(begin, end) without a step, got {rows}")
        rows = (rows.start, rows.stop)
    batch_range = (0, batch) if batch_range is None else batch_range
    _check_sizes(batch, heads, rows, keys, batch_range)
    seed = _checked_seed(seed)
    device = _device_of(seed) if device is None else torch.device(device)
    if device.type == "cpu" and not _is_tracing(seed) and _extension.load() is not None:
        return _keep_mask_compiled(int(seed), threshold, heads, rows, keys, batch_range)
    if make_on_gpu is not None and _has_kernel(seed, device) and not _is_taken_apart():
        made = make_on_gpu(seed, threshold, heads, rows, keys, batch_range)
        if made is not None:
            return made
    if device.type == "jax" and torch.arange(1, device=device).dtype != torch.int64:
        raise ArgumentError(
            "a dropout mask on device 'jax' needs a seed there and "
            f"{lowering.REMEDIES['jax']}, or 64-bit integers: jax_enable_x64"
        )
    return keep_mask_aten(seed, threshold, heads, rows, keys, batch_range, device)


def keep_mask_aten(
    seed: Tensor | int,
    threshold: int,
    heads: int,
    rows: tuple[int, int],
    keys: int,
    batch_range: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """`keep_mask` in plain ATen; arguments already checked, `threshold` from `keep_threshold`."""
    if isinstance(seed, Tensor) and seed.device != device and seed.device.type != "cpu":
        seed = seed.to(device)  # a CPU scalar mixes with tensors of any device as it is
    groups = (keys + 3) // 4 + 1  # never 1, which an exported graph would specialise on
    first, last = batch_range
    heads_flat = torch.arange(first * heads, last * heads, device=device)
    words = philox4x32(
        (
            torch.arange(groups, device=device),  # [J/4]
            torch.arange(rows[0], rows[1], device=device)[:, None],  # [I, 1]
            heads_flat.view(last - first, heads, 1, 1),  # [B, N, 1, 1]
            torch.zeros((), dtype=torch.int64, device=device),
        ),
        (seed & _LOW32, (seed >> 32) & _LOW32),
    )
    kept = torch.stack([word >= threshold for word in words], dim=-1)  # [B, N, I, J/4, 4]
    # Selected by index, not sliced: a slice makes an exported graph specialise on J.
    return kept.flatten(-2).index_select(-1, torch.arange(keys, device=device))


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor],
    key: tuple[Tensor | int, Tensor | int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on int64 tensors holding unsigned 32-bit words.

    Args:
        counter: four int64 tensors, 0 <= word < 2**32, broadcast against each other.
        key: two words, ints or int64 scalars, 0 <= word < 2**32.

    Returns:
        Four int64 tensors of unsigned 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW32, (k1 + _WEYL[1]) & _LOW32
    return c0, c1, c2, c3


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of word * constant.

    The constant is split in halves because a product of two 32-bit words overflows int64, which is
    undefined in the C++ that a compiler of traced graphs may generate.
    """
    upper = word * (constant >> 16)  # < 2**48
    lower = word * (constant & 0xFFFF)  # < 2**48
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & _LOW32
    return high, low


def _keep_mask_compiled(
    seed: int,
    threshold: int,
    heads: int,
    rows: tuple[int, int],
    keys: int,
    batch_range: tuple[int, int],
) -> Tensor:
    """`keep_mask` by the extension, on the CPU, with as many threads as torch may use."""
    shape = (batch_range[1] - batch_range[0], heads, rows[1] - rows[0], keys)
    keep = torch.empty(shape, dtype=torch.bool)
    _extension.philox_keep_mask(
        keep.data_ptr(),
        seed=seed,
        threshold=threshold,
        heads=heads,
        batch=batch_range,
        rows=rows,
        keys=keys,
        threads=torch.get_num_threads(),
    )
    return keep


def _is_tracing(seed: Tensor | int) -> bool:
    """Whether the value of `seed` must not be read: compile, export, fake tensors, functorch."""
    return (
        torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or (isinstance(seed, Tensor) and type(seed) is not Tensor)
    )


def _has_kernel(seed: Tensor | int, device: torch.device) -> bool:
    """Whether `seed` is on the device where its mask is wanted, a GPU or one of JAX that knows."""
    if not isinstance(seed, Tensor) or seed.device.type != device.type:
        return False
    if device.type == "jax":
        return lowering.why_missing("jax") is None
    return device.type == "cuda" and device.index in (None, seed.device.index)


def _is_taken_apart() -> bool:
    """Whether a tracer looks on that should see plain ATen: compile, export, make_fx, functorch."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or get_proxy_mode() is not None
    )


def seed_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """What a seed may have for dtype on a device: JAX makes int32 of int64 by default."""
    return (torch.int64, torch.int32) if device.type == "jax" else (torch.int64,)


def _device_of(seed: Tensor | int) -> torch.device:
    return seed.device if isinstance(seed, Tensor) else torch.device("cpu")


def _checked_seed(seed: Tensor | int) -> Tensor | int:
    """`seed` as an int or an int64 tensor of shape ()."""
    if not isinstance(seed, Tensor):
        if seed not in _INT64:
            raise ArgumentError(f"seed must fit int64, got {seed}")
        return seed
    if seed.dtype not in seed_dtypes(seed.device):
        raise ArgumentError(f"seed must be an int64 tensor, got {seed.dtype}")
    if seed.numel() != 1:
        raise ShapeError(f"seed must have one element, got shape {tuple(seed.shape)}")
    return seed.reshape(())


def _check_sizes(
    batch: int, heads: int, rows: tuple[int, int], keys: int, batch_range: tuple[int, int]
) -> None:
    for name, size in (("batch", batch), ("heads", heads), ("keys", keys)):
        if size < 0:
            raise ArgumentError(f"{name} must not be negative, got {size}")
    if not 0 <= rows[0] <= rows[1]:
        raise ArgumentError(f"rows must be (begin, end) with 0 <= begin <= end, got {rows}")
    if not 0 <= batch_range[0] <= batch_range[1] <= batch:
        raise ArgumentError(
            f"batch_range must be (begin, end) with 0 <= begin <= end <= {batch}, got {batch_range}"
        )
