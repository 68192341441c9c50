"""Instructions of the CUDA attention kernels for one tile, compiled and counted without a GPU.

    python3 -m benchmarks.micro.cuda_tile_costs [--arch 90] [--head-dim 64]

Counted are those of the loop over tiles of 64 x 64 scores (32 columns where D > 64), of rows in
order, in bf16: what one warp issues for its 16 rows. Branches that a call does not take are in that
loop too, so each line compiles the kernels with features taken out of the source:

    plain     no mask, no segments, no dropout, all keys there
    padding   key padding, segments, and a row that sees its own key
    all       nothing taken out

Needs nvcc, a disassembler (Triton's or the toolkit's), and the sources of a checkout.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from xlnet_fast.builder import recipe
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.report import sass
from xlnet_fast.kernels.report.cuda import find_nvcc, known_archs, run_nvcc

KERNELS = ("forward", "backward_q", "backward_kv", "backward_r")
PRODUCT = "HMMA"
Edit = tuple[str, str, str]  # header, text, what takes its place
_RARE: tuple[Edit, ...] = (
    ("mask.cuh", "if (stream.rank_q != nullptr) {", "if (false) {"),
    ("mask.cuh", "if (stream.causal) {", "if (false) {"),
    ("mask.cuh", "if (Limits::any(stream)) {", "if (false) {"),
    ("mask.cuh", "if (stream.bits != nullptr) {", "if (false) {"),
    ("attention.cuh", "if (!head.all.dropout) return 0xffffffffu;", "return 0xffffffffu;"),
)
VARIANTS: dict[str, tuple[Edit, ...]] = {
    "plain": (
        *_RARE,
        (
            "mask.cuh",
            "some_missing = head.padded() || j0 + 8 * Tiles > head.keys();",
            "some_missing = false;",
        ),
        ("mask.cuh", "if (head.segmented()) {", "if (false) {"),
        ("mask.cuh", "if (stream.see_self) ", "if (false) "),
        ("attention.cuh", "return padded() && load", "return false && load"),
    ),
    "padding": _RARE,
    "all": (),
}


def edit(csrc: Path, edits: Sequence[Edit]) -> None:
    """Change the headers of a copy of csrc, every place where a text is.

    Raises:
        ValueError: a text is nowhere in its header.
    """
    for name, text, instead in edits:
        header = csrc / "cuda" / name
        source = header.read_text(encoding="utf-8")
        if text not in source:
            raise ValueError(f"{name} has no {text!r} any more: bring the edits up to date")
        header.write_text(source.replace(text, instead), encoding="utf-8")


def tile_loop(code: sass.Function) -> list[str]:
    """The instructions of the loop over tiles of rows in order.

    It has the most products of the loops that hold no other with products: rows at positions of
    their own have loops over chunks of their window.

    Raises:
        ValueError: no loop has products.
    """

    def products(span: tuple[int, int]) -> int:
        body = code.instructions[span[0] : span[1] + 1]
        return sum(sass.opcode(text) == PRODUCT for text in body)

    spans = [span for span in sass.loops(code) if products(span)]
    alone = [
        (begin, end)
        for begin, end in spans
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in spans)
    ]
    if not alone:
        raise ValueError(f"no loop has an {PRODUCT}, so none goes over tiles")
    begin, end = max(alone, key=products)
    return code.instructions[begin : end + 1]


def count(kernel: str, variant: str, arch: str, head_dim: int) -> dict[str, int]:
    """The instructions of a kernel's loop over tiles: products, and all."""
    compiler = find_nvcc()._replace(archs=(arch,))
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder) / "csrc"
        shutil.copytree(recipe.csrc(), csrc)
        edit(csrc, VARIANTS[variant])
        source = csrc / "cuda" / "instantiations" / f"rel_attention_{kernel}_bfloat16_{head_dim}.cu"
        cubin = Path(folder) / "kernel.cubin"
        run_nvcc(compiler, source, cubin)
        found = sass.disassemble(sass.nvdisasm(), cubin, "nvcc")
    (code,) = (code for name, code in found.items() if "kernel" in name)
    return sass.count(tile_loop(code), (PRODUCT,))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", type=int, default=90, help="90 for sm_90a")
    parser.add_argument("--head-dim", type=int, default=64, choices=(32, 64, 128))
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    options = parser.parse_args(arguments)
    arch = {90: "90a"}.get(options.arch, str(options.arch))
    jobs = [(kernel, variant) for kernel in options.kernel for variant in VARIANTS]
    try:
        if options.arch not in (known := known_archs()):
            parser.error(f"--arch {options.arch} is not one of {', '.join(map(str, known))}")
        sass.nvdisasm()  # or its lack would show only when the first kernel is compiled
        with ThreadPoolExecutor(recipe.jobs()) as pool:
            counts = list(pool.map(lambda job: count(*job, arch, options.head_dim), jobs))
    except (ArgumentError, BackendUnavailable) as error:
        parser.error(str(error))
    table = Table(title=f"sm_{arch}, D = {options.head_dim}: one warp, one tile")
    for heading in ("kernel", PRODUCT, *VARIANTS):
        table.add_column(heading, justify="right")
    found = dict(zip(jobs, counts, strict=True))
    for kernel in options.kernel:
        totals = (str(found[kernel, variant]["all"]) for variant in VARIANTS)
        table.add_row(kernel, str(found[kernel, "plain"][PRODUCT]), *totals)
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
