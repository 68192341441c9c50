"""Kernels of one warpgroup with a product, and matrices as its descriptors want them in memory.

The layouts are written out as PTX's manual draws them: atoms of eight rows, whose pieces of 16
bytes change places by the row. They know nothing of addresses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ptx_snippets import entry, launched

THREADS = 128
AT_A, AT_B, SHARED = 4096, 20480, 65536
"""Where matrices begin in shared memory, and its size."""
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "f32": torch.float32}
SWIZZLES = {16: 0, 128: 1, 64: 2, 32: 3}  # bytes of a row -> what a descriptor says


@dataclass(frozen=True)
class Layout:
    """How a matrix lies in shared memory.

    Attributes:
        width: bytes of a row that is swizzled: 32, 64, 128; 16 for none.
        transposed: the elements of a column of k lie side by side, not those of a row.
        leading, stride: bytes from one atom to the next, as the descriptor has them.
    """

    width: int
    transposed: bool = False
    leading: int = 16
    stride: int = 16

    def descriptor(self, start: int) -> int:
        """The bits, without the address of shared memory."""
        fields = (start >> 4) | (self.leading >> 4) << 16 | (self.stride >> 4) << 32
        return fields | SWIZZLES[self.width] << 62

    def place(self, row: int, k: int, size: int) -> int:
        """The byte of an element of `size` bytes, from where the matrix begins."""
        line, along = (k, row) if self.transposed else (row, k)
        atom, within = divmod(along * size, self.width)
        piece, byte = divmod(within, 16)
        eight, line = divmod(line, 8)
        # 16 bytes of a row change places with those of another number; 64 and 32 bytes wide, two
        # and four rows do so alike.
        piece ^= line * self.width // 128 if self.width > 16 else 0
        turned = self.transposed and self.width == 16
        across, down = (eight, atom) if turned else (atom, eight)
        far = across * self.leading + down * self.stride
        return far + line * self.width + piece * 16 + byte


def image(matrix: torch.Tensor, layout: Layout, at: int, memory: np.ndarray) -> None:
    """Lay a matrix [row, k] into the bytes of shared memory."""
    size = matrix.element_size()
    raw = matrix.contiguous().view(torch.uint8).numpy().reshape(*matrix.shape, size)
    for row, k in np.ndindex(*matrix.shape):
        place = at + layout.place(row, k, size)
        memory[place : place + size] = raw[row, k]


def registers_of_a(matrix: torch.Tensor) -> np.ndarray:
    """The fragments of a left matrix [64, k] in four registers: [register, thread]."""
    per_word = 4 // matrix.element_size()
    words = torch.empty(4, THREADS, per_word, dtype=matrix.dtype)
    for i, thread, e in np.ndindex(*words.shape):
        warp, lane = divmod(thread, 32)
        row = 16 * warp + lane // 4 + 8 * (i % 2)
        words[i, thread, e] = matrix[row, (lane % 4 + 4 * (i // 2)) * per_word + e]
    return words.view(torch.int32).numpy().view(np.uint32).reshape(4, THREADS)


def place_of_sum(thread: int, i: int, e: int, per_word: int) -> tuple[int, int]:
    """The row and column of an element of D in register i of a thread."""
    warp, lane = divmod(thread, 32)
    index = i * per_word + e
    row = 16 * warp + lane // 4 + 8 * (index // 2 % 2)
    return row, 8 * (index // 4) + 2 * (lane % 4) + index % 2


def spread_sums(sums: torch.Tensor) -> np.ndarray:
    """D [64, n] as registers: [register, thread]."""
    per_word = 4 // sums.element_size()
    words = torch.empty(sums.numel() // THREADS // per_word, THREADS, per_word, dtype=sums.dtype)
    for i, thread, e in np.ndindex(*words.shape):
        words[i, thread, e] = sums[place_of_sum(thread, i, e, per_word)]
    return words.view(torch.int32).numpy().view(np.uint32).reshape(-1, THREADS)


def gathered_sums(words: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The D that registers hold."""
    elements = torch.from_numpy(words.view(np.int32)).view(dtype).reshape(len(words), THREADS, -1)
    columns = elements.numel() // 64
    sums = torch.empty(64, columns, dtype=dtype)
    for i, thread, e in np.ndindex(*elements.shape):
        sums[place_of_sum(thread, i, e, elements.shape[2])] = elements[i, thread, e]
    return sums


FILL = f"""\
  mov.b32 %at, kept;
  shl.b32 %r0, %tid_x, 2;
  add.u32 %r0, %r0, %at;
  mul.wide.u32 %q0, %tid_x, 4;
  add.s64 %q0, %q0, %memory;
  mov.b32 %r1, 0;
MORE:
  ld.global.b32 %r2, [%q0];
  st.shared.b32 [%r0], %r2;
  add.u32 %r0, %r0, {4 * THREADS};
  add.s64 %q0, %q0, {4 * THREADS};
  add.u32 %r1, %r1, 1;
  setp.lt.u32 %p0, %r1, {SHARED // 4 // THREADS};
  @%p0 bra MORE;
"""
"""All of shared memory, each thread words of its own."""
READY = "fence.proxy.async.shared::cta;\nbar.sync 0;\n"
DONE = "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n"


def listed(name: str, count: int) -> str:
    return "{" + ", ".join(f"%{name}{i}" for i in range(count)) + "}"


def kernel(body: str, sums: int, descriptors: dict[str, int], threads: int = THREADS) -> str:
    """A module that fills shared memory, reads D and A's fragments, runs a body and writes D.

    Args:
        body: instructions; D is in `%d0`.., A in `%a0`.., both of the parameters of their names,
            and a descriptor in the 64-bit register of its name.
        sums: registers of D.
    """
    lines = ["mul.wide.u32 %q1, %tid_x, 4;"]
    for name, count in (("d", sums), ("a", 4)):
        lines.append(f"add.s64 %q2, %{name}_in, %q1;")
        lines += [f"ld.global.b32 %{name}{i}, [%q2+{4 * threads * i}];" for i in range(count)]
    lines.append("cvt.u64.u32 %q3, %at;\nshr.u64 %q3, %q3, 4;")
    for name, bits in descriptors.items():
        lines.append(f"add.s64 %{name}, %q3, {bits - (1 << 64) if bits >> 63 else bits};")
    stores = ["add.s64 %q2, %out, %q1;"]
    stores += [f"st.global.b32 [%q2+{4 * threads * i}], %d{i};" for i in range(sums)]
    registers = f"  .reg .b32 %d<{sums}>, %a<4>, %at;\n  .shared .align 1024 .b8 kept[{SHARED}];\n"
    registers += "".join(f"  .reg .b64 %{name};\n" for name in descriptors)
    text = "\n".join([FILL, *lines, body, *stores, "ret;"])
    return entry(text, ("memory", "d_in", "a_in", "out"), registers)


def run(
    text: str,
    memory: np.ndarray,
    d: np.ndarray,
    a: np.ndarray | None = None,
    threads: int = THREADS,
    seed: int = 0,
) -> np.ndarray:
    """What D's registers hold in the end: [register, thread]."""
    a = np.zeros((4, threads), np.uint32) if a is None else a
    values = [memory, d.ravel(), a.ravel(), np.zeros_like(d).ravel()]
    return launched(text, values, (1,), threads, seed=seed)[-1].reshape(d.shape)
