"""From `Keys` and `Queries` to the arguments that all attention kernels share, checked."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError
from xlnet_fast.kernels.chips import CHIPS, WARP, blocks_per_multiprocessor
from xlnet_fast.kernels.triton import tiles, why_unavailable
from xlnet_fast.kernels.triton.rel_attention_arguments import (
    STREAMS,
    Biases,
    KeyTensors,
    KeyVectors,
)
from xlnet_fast.kernels.triton.tile_ops import PADDED_CODE
from xlnet_fast.kernels.triton.tiles import (
    DTYPES,
    MAX_HEAD_DIM,
    Config,
    block_d,
    choose_config,
    shape_class,
)
from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.philox import keep_threshold

STRIP_KEYS = 512
"""Keys of one stretch: a program's strip has a column for each. Long enough that the rows of r met
twice, at the edges of stretches, are few; short enough that all strips stay in the L2 cache."""
QUERY_ROWS = 32  # rows of a tile of the query stream, whose rows are few and lie apart


class Call:
    """One attention call as its kernels take it."""

    def __init__(self, keys: Keys, streams: Sequence[Queries]) -> None:
        first = streams[0]
        reason = why_unavailable(first.q.device)
        if reason is not None:
            raise BackendUnavailable(reason)
        if keys.k_memory is not None and keys.k_memory.shape[1] == 0:
            keys = replace(keys, k_memory=None, v_memory=None)
        self.keys, self.streams = keys, streams
        self.batch, _, self.heads, self.head_dim = first.q.shape
        _check(keys, streams)
        mask = first.mask
        self.width = STRIP_KEYS
        self.padded_d = -(-self.head_dim // 16) * 16
        self.is_empty = self.batch * self.heads * keys.count == 0 or not any(
            stream.q.shape[1] for stream in streams
        )
        self.log2_scale = keys.scale * math.log2(math.e)
        self.keep_from = keep_threshold(keys.dropout_p) - 2**31
        self.keep_scale = 1.0 / (1.0 - keys.dropout_p)
        self.rows = [stream.q.shape[1] for stream in streams] + [0] * (2 - len(streams))
        tensors = KeyTensors._make(
            None if x is None else _as_tiles(x, self.padded_d)
            for x in (getattr(keys, name) for name in KeyTensors._fields)
        )
        self.key_arguments = (
            tensors,
            KeyTensors._make(map(_strides, tensors)),
            Biases._make(_pad_last(getattr(keys, x), self.padded_d) for x in Biases._fields),
            KeyVectors(
                code=_key_code(keys.segments, mask.key_padding),
                segments=_contiguous(keys.segments),
                padding=_bytes(mask.key_padding),
                rank_k=_contiguous(mask.rank_k),
            ),
        )
        self.sizes = (
            self.batch, self.heads, keys.count, keys.memory_length,
            *window(mask, keys.count, keys.current),
            keys.r.shape[1], max(1, self.batch // keys.r.shape[0]),
        )  # fmt: skip
        self.flags = {
            "CAUSAL": mask.causal,
            "SAME_LENGTH": mask.same_length,
            "SELF": _pair([s.mask.see_self and not s.mask.hides_nothing for s in streams]),
            "BY_POSITION": _pair([s.by_position and s.positions is not None for s in streams]),
            "START": keys.r_start,
        }

    @property
    def device(self) -> torch.device:
        return self.streams[0].q.device

    def config(self, kernel: str) -> Config:
        """The tile of a kernel for this call."""
        first = self.streams[0]
        heavy = self.keys.dropout_p > 0.0 or len(self.streams) > 1 or first.positions is not None
        for stream in self.streams:
            mask = stream.mask
            heavy = heavy or mask.rank_q is not None or mask.bits is not None
            heavy = heavy or (mask.key_padding is not None and not mask.see_self)
            heavy = heavy or mask.has_window
        return choose_config(
            kernel, first.q.dtype, self.head_dim, heavy, arch(self.device),
            shape_class(max(self.rows), self.keys.count), gpu_name(self.device),
            tiles.recorded_on(self.device),
        )  # fmt: skip

    def query_rows(self, config: Config) -> int:
        """Rows of a tile of the second stream."""
        apart = len(self.streams) > 1 and self.streams[1].positions is not None
        return min(QUERY_ROWS, config.block_m) if apart else config.block_m

    def row_tiles(self, config: Config) -> int:
        """Tiles of rows of both streams, all batch elements and heads."""
        tiles = -(-self.rows[0] // config.block_m) + -(-self.rows[1] // self.query_rows(config))
        return self.batch * self.heads * tiles

    def shape(self, config: Config) -> dict[str, int]:
        """The constants of a kernel's tiles."""
        return {
            "D": self.padded_d,
            "BD": block_d(self.head_dim),
            "BM": config.block_m,
            "BM_G": self.query_rows(config),
            "BN": config.block_n,
        }

    def programs(self, config: Config) -> int:
        """Programs that the chip runs at a time, at least; any number of them is right."""
        return processors(self.device) * programs_per_processor(config, arch(self.device))

    def strip_elements(self, config: Config) -> int:
        """A strip's rows, of its columns and a margin on either side for rows in order.

        The last row overshoots its own margin by less than `block_m`, hence one more.
        """
        return config.block_m * (self.width + config.block_m + config.block_n + 1)

    def scratch(self, programs: int, elements: int) -> Tensor:
        """Memory of `elements` for each program, not initialised."""
        return torch.empty(programs * elements, dtype=self.keys.r.dtype, device=self.device)

    def target(self, out: Tensor) -> Tensor:
        """What a kernel may write in place of `out`: `out` itself where its layout allows."""
        return _as_tiles(out, self.padded_d, copy=False)

    def tiles(self, x: Tensor) -> Tensor:
        """`x` (B, rows, N, D), copied where its layout does not suit the kernels."""
        return _as_tiles(x, self.padded_d)

    def strides(self, x: Tensor | None) -> tuple[int, ...]:
        """The strides (b, row, n) of a kernel's argument."""
        return _strides(x)

    def write_back(self, out: Tensor, target: Tensor) -> None:
        """Copy a target to where it belongs, if it is not there."""
        if target is not out:
            out.copy_(target[..., : out.shape[-1]])

    def per_stream(self, kernel: str, **own: Sequence[Tensor | None]) -> tuple[Any, ...]:
        """The tuples of `STREAMS` that a kernel takes: both streams, then the strides of both.

        Args:
            kernel: one of `KERNELS`.
            own: what it takes of each stream beyond the operands, by the name of the field.
        """
        tensors_type, strides_type = STREAMS[kernel]
        tensors: list[Any] = []
        strides: list[Any] = []
        for number, stream in enumerate(self.streams):
            bits = stream.mask.bits
            fields = {
                "q": _as_tiles(stream.q, self.padded_d),
                "positions": _contiguous(stream.positions),
                "segments": _contiguous(stream.segments),
                "rank_q": _contiguous(stream.mask.rank_q),
                "bits": _contiguous(bits),
                "seed": stream.seed if self.keys.dropout_p > 0.0 else None,
                **{name: values[number] for name, values in own.items()},
            }
            bits_stride = 0 if bits is None or bits.shape[0] == 1 else bits[0].numel()
            tensors.append(tensors_type(**fields))
            strides.append(
                strides_type._make(
                    bits_stride if name == "bits" else _strides(fields[name])
                    for name in strides_type._fields
                )
            )
        missing = [None] * (2 - len(self.streams))
        return *tensors, *missing, *strides, *missing


def device_guard(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch on the device of `x`."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def arch(device: torch.device) -> int:
    """Compute capability as one number, 90 for 9.0; the interpreter passes for any chip."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def programs_per_processor(config: Config, arch: int) -> int:
    """How many programs of a tile run at a time on one multiprocessor, at least 1.

    More would wait, each with a strip that keeps others' out of the L2 cache. A tile that was never
    compiled counts with all the registers that it may have.

    Args:
        arch: compute capability as one number; one that is unknown counts as the next older.
    """
    known = max(chip for chip in CHIPS if chip <= arch)
    registers = config.registers or config.maxnreg
    threads = config.num_warps * WARP
    return max(1, blocks_per_multiprocessor(known, registers, threads, config.shared_bytes))


@cache
def gpu_name(device: torch.device) -> str | None:
    """What the driver calls the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors; under the interpreter a few, so that programs take turns."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def window(
    mask: AttentionMask, keys: int, current: int
) -> tuple[int | None, int | None, int | None]:
    """(left, ahead, chunk) of a mask's window: keys start - left .. start + ahead - 1 are in sight.

    The start is a row's own key, or the first of its chunk where a chunk has more than one; else
    `chunk` is None. A side without a limit reaches beyond all keys. All are None without a window.
    """
    if not mask.has_window:
        return None, None, None
    left, right, chunk = mask.limits
    left, right = (keys if side < 0 else min(side, keys) for side in (left, right))
    chunk = max(1, min(chunk, current))
    return left, chunk + right, chunk if chunk > 1 else None


def _pair(values: list[bool]) -> tuple[bool, bool]:
    return values[0], values[-1]


def _strides(x: Tensor | None) -> tuple[int, ...]:
    """The first three strides; 0 of a dimension of one element, whatever its stride says."""
    if x is None:
        return 0, 0, 0
    return tuple(x.stride(dim) if x.shape[dim] > 1 else 0 for dim in range(3))


def _as_tiles(x: Tensor, width: int, copy: bool = True) -> Tensor:
    """`x` (B, I, N, D) if it can be read in 16-byte pieces, else a buffer (B, I, N, width).

    Pointers and strides that are no multiples of 16 would need another, slower kernel with far
    more registers. `copy=False` leaves the buffer unwritten.
    """
    fits = x.shape[-1] == width and x.stride(-1) == 1 and x.data_ptr() % 16 == 0
    if fits and all(stride % 16 == 0 for stride in _strides(x)):
        return x
    if copy and x.shape[2] > 1 and x.stride(2) == 0:  # one head's rows for all: one copy for all
        return _as_tiles(x[:, :, :1], width).expand(-1, -1, x.shape[2], -1)
    if not copy:
        return torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    buffer = torch.zeros((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    buffer[..., : x.shape[-1]] = x
    return buffer


def _pad_last(x: Tensor | None, width: int) -> Tensor | None:
    return None if x is None else torch.nn.functional.pad(x, (0, width - x.shape[-1])).contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _bytes(x: Tensor | None) -> Tensor | None:
    """A bool tensor as bytes: Triton has no pointer to bool."""
    return None if x is None else x.contiguous().view(torch.uint8)


def _key_code(segments: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """(B, J) int32, the key's segment or PADDED_CODE: one load a key tells both."""
    if segments is None:
        return None if padding is None else torch.where(padding, PADDED_CODE, 0).to(torch.int32)
    code = segments.to(torch.int32)
    return code.contiguous() if padding is None else code.masked_fill(padding, PADDED_CODE)


def _check(keys: Keys, streams: Sequence[Queries]) -> None:
    """What the ops' own checks leave open: limits of these kernels."""
    q = streams[0].q
    if q.dtype not in DTYPES:
        raise ArgumentError(f"q has dtype {q.dtype}, expected {', '.join(map(str, DTYPES))}")
    if not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        raise ShapeError(f"head dim {q.shape[3]} is not in 1..{MAX_HEAD_DIM}")
    for name, x in {
        "k": keys.k, "v": keys.v, "k_memory": keys.k_memory, "v_memory": keys.v_memory,
        "r": keys.r, **{f"q of stream {n}": s.q for n, s in enumerate(streams)},
    }.items():  # fmt: skip
        if x is not None and (x.dtype != q.dtype or x.device != q.device):
            raise ArgumentError(
                f"{name} is {x.dtype} on {x.device}, expected {q.dtype} on {q.device}"
            )
    if keys.dropout_p > 0.0 and any(stream.seed is None for stream in streams):
        raise ArgumentError(f"dropout_p {keys.dropout_p} needs the seed of every stream")
    least = keys.count + 1 - keys.r_start
    if keys.r.shape[1] < least:
        raise ShapeError(
            f"r has {keys.r.shape[1]} rows, expected at least J + 1 - r_start = {least}"
        )
