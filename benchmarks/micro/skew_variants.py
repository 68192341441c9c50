"""How the shifted position score can reach a tile: three forms, compiled and counted without a GPU.

    python3 -m benchmarks.micro.skew_variants [--arch 90]

Each kernel is flash attention with a position score and nothing else (bf16, D = 64, one head, all
sizes multiples of the tile). What differs is the way from the product of q and a window of r to the
tile of scores:

    carry   two halves of the window in registers, `tl.gather` along the row from both
    ring    each new piece of the window goes to scratch memory, rows are read at their own offset
    strip   pieces are written at each row's own offset first, aligned tiles are read afterwards

The table has, per 128 x 64 scores: instructions that all warps issue in the loops over keys, those
of them that are barriers, shared or global memory accesses and shuffles, registers, and spills.
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

D = tl.constexpr(64)
SCORES = 128 * 64
MEMORY = re.compile(r"^(LD|ST|SHFL|BAR)")


@triton.jit
def _softmax_step(b_s, b_v, b_max, b_sum, b_acc):
    b_next = tl.maximum(b_max, tl.max(b_s, 1))
    b_shrink = tl.exp2(b_max - b_next)
    b_p = tl.exp2(b_s - b_next[:, None])
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_shrink[:, None])
    return b_next, b_sum * b_shrink + tl.sum(b_p, 1), b_acc


@triton.jit
def carry(q, q_r, k, v, r, out, strip, keys, length, BM: tl.constexpr, BN: tl.constexpr):
    i0 = tl.program_id(0) * BM
    o_a, o_c, o_d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, D)
    b_q = tl.load(q + (i0 + o_a)[:, None] * D + o_d[None, :])
    b_qr = tl.load(q_r + (i0 + o_a)[:, None] * D + o_d[None, :])
    b_max, b_sum = tl.full((BM,), -1e30, tl.float32), tl.zeros((BM,), tl.float32)
    b_acc = tl.zeros((BM, D), tl.float32)
    p0 = length - i0 - BM + 1
    b_left = tl.dot(b_qr, tl.load(r + (p0 + o_c)[None, :] * D + o_d[:, None])).to(b_q.dtype)
    o_w = o_c[None, :] - o_a[:, None] + BM - 1
    for j0 in range(0, keys, BN):
        b_r = tl.load(r + (p0 + j0 + BN + o_c)[None, :] * D + o_d[:, None])
        b_right = tl.dot(b_qr, b_r).to(b_q.dtype)
        b_s = tl.dot(b_q, tl.load(k + (j0 + o_c)[None, :] * D + o_d[:, None]))
        b_left = tl.gather(b_left, tl.minimum(o_w, BN - 1), 1)
        b_bd = tl.where(o_w < BN, b_left, tl.gather(b_right, tl.maximum(o_w - BN, 0), 1))
        b_v = tl.load(v + (j0 + o_c)[:, None] * D + o_d[None, :])
        b_max, b_sum, b_acc = _softmax_step(b_s + b_bd, b_v, b_max, b_sum, b_acc)
        b_left = b_right
    p_out = out + (i0 + o_a)[:, None] * D + o_d[None, :]
    tl.store(p_out, (b_acc / b_sum[:, None]).to(b_q.dtype))


@triton.jit
def ring(q, q_r, k, v, r, out, strip, keys, length, BM: tl.constexpr, BN: tl.constexpr):
    i0 = tl.program_id(0) * BM
    o_a, o_c, o_d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, D)
    b_q = tl.load(q + (i0 + o_a)[:, None] * D + o_d[None, :])
    b_qr = tl.load(q_r + (i0 + o_a)[:, None] * D + o_d[None, :])
    b_max, b_sum = tl.full((BM,), -1e30, tl.float32), tl.zeros((BM,), tl.float32)
    b_acc = tl.zeros((BM, D), tl.float32)
    p0 = length - i0 - BM + 1
    row = strip + tl.program_id(0) * BM * 1024 + o_a[:, None] * 1024
    for j0 in range(0, keys, BN):
        b_r = tl.load(r + (p0 + j0 + BM + o_c)[None, :] * D + o_d[:, None])
        tl.store(row + (j0 + BM + o_c)[None, :], tl.dot(b_qr, b_r).to(b_q.dtype))
        tl.debug_barrier()
        b_bd = tl.load(row + (j0 + o_c[None, :] - o_a[:, None] + BM - 1))
        b_s = tl.dot(b_q, tl.load(k + (j0 + o_c)[None, :] * D + o_d[:, None]))
        b_v = tl.load(v + (j0 + o_c)[:, None] * D + o_d[None, :])
        b_max, b_sum, b_acc = _softmax_step(b_s + b_bd, b_v, b_max, b_sum, b_acc)
    p_out = out + (i0 + o_a)[:, None] * D + o_d[None, :]
    tl.store(p_out, (b_acc / b_sum[:, None]).to(b_q.dtype))


@triton.jit
def strip(q, q_r, k, v, r, out, strip, keys, length, BM: tl.constexpr, BN: tl.constexpr):
    i0 = tl.program_id(0) * BM
    o_a, o_c, o_d = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, D)
    b_qr = tl.load(q_r + (i0 + o_a)[:, None] * D + o_d[None, :])
    p0 = length - i0 - BM + 1
    row = strip + tl.program_id(0) * BM * 1024 + o_a[:, None] * 1024
    for w0 in range(0, keys + BM, BN):
        b_r = tl.load(r + (p0 + w0 + o_c)[None, :] * D + o_d[:, None])
        tl.store(row + (w0 + o_c[None, :] + o_a[:, None]), tl.dot(b_qr, b_r).to(b_qr.dtype))
    tl.debug_barrier()
    b_q = tl.load(q + (i0 + o_a)[:, None] * D + o_d[None, :])
    b_max, b_sum = tl.full((BM,), -1e30, tl.float32), tl.zeros((BM,), tl.float32)
    b_acc = tl.zeros((BM, D), tl.float32)
    for j0 in range(0, keys, BN):
        b_bd = tl.load(row + (BM + j0 + o_c)[None, :])
        b_s = tl.dot(b_q, tl.load(k + (j0 + o_c)[None, :] * D + o_d[:, None]))
        b_v = tl.load(v + (j0 + o_c)[:, None] * D + o_d[None, :])
        b_max, b_sum, b_acc = _softmax_step(b_s + b_bd, b_v, b_max, b_sum, b_acc)
    p_out = out + (i0 + o_a)[:, None] * D + o_d[None, :]
    tl.store(p_out, (b_acc / b_sum[:, None]).to(b_q.dtype))


def count(kernel, arch: int, block_m: int, warps: int) -> dict[str, object]:
    """Compile one form and count its loops; figures are for SCORES scores."""
    types, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in ("BM", "BN"):
            types[name], constants[index,] = "constexpr", block_m if name == "BM" else 64
        elif name in ("keys", "length"):
            types[name] = "i32"
        else:
            types[name], attributes[index,] = "*bf16", [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, types, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "num_stages": 2, "maxnreg": 255, "enable_fp_fusion": True},
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        nvidia = triton.knobs.nvidia
        ask = [[nvidia.nvdisasm.path, file], [nvidia.cuobjdump.path, "-res-usage", file]]
        code, usage = (subprocess.run(c, capture_output=True, text=True).stdout for c in ask)
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
    kinds = loop_instructions(code)
    times = SCORES // (block_m * 64) * warps
    return {
        "form": kernel.__name__,
        "tile": f"{block_m}x64, {warps}",
        "instructions": sum(kinds.values()) * times,
        "memory": sum(n for kind, n in kinds.items() if MEMORY.match(kind)) * times,
        "registers": int(registers),
        "spill_bytes": int(stack),
    }


def loop_instructions(assembly: str) -> collections.Counter[str]:
    """Instructions of all loops of a disassembled kernel without nested loops, by opcode."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r"\.(L_x_\d+):", line.strip()):
            labels[label[1]] = len(code)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?(.*?);", line):
            code.append(found[1])
    kinds: collections.Counter[str] = collections.Counter()
    for end, text in enumerate(code):
        target = re.search(r"BRA.*`\(\.(L_x_\d+)\)", text)
        if target and labels.get(target[1], end + 1) < end:
            kinds.update(t.split()[0].split(".")[0] for t in code[labels[target[1]] : end + 1])
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, default=90)
    arch = parser.parse_args().arch
    forms = [(carry, 64, 4), (carry, 64, 8), (ring, 128, 8), (strip, 128, 8)]
    rows = [count(*form[:1], arch, *form[1:]) for form in forms]
    table = Table(title=f"sm_{arch}, Triton {triton.__version__}, per 128 x 64 scores")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
