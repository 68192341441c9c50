"""Which CUDA C++ kernels the report compiles, and how: for real chips, on any machine with nvcc.

nvcc gets the flags of the extension's build, so these are the bits that would run. What ptxas says
of a kernel (registers, spills, static shared memory) is joined with what its machine code shows:
tensor-core instructions, copies, barriers, and which of them are in innermost loops.

What nvcc made of a source is kept in the user's cache under a hash of all that decides it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from xlnet_fast import files
from xlnet_fast.builder import nvcc, recipe
from xlnet_fast.builder.nvcc import Nvcc
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels import chips
from xlnet_fast.kernels.chips import CHIPS, blocks_per_multiprocessor
from xlnet_fast.kernels.report import rows, sass, usage
from xlnet_fast.kernels.report.jobs import expect_known, run_jobs
from xlnet_fast.kernels.report.rows import COUNTED, PRODUCT, Row

ARCHS = (80, 90)
_NAMES = {90: "90a"}  # as the extension is built


def find_nvcc() -> Nvcc:
    """The nvcc that the extension would be built with.

    Raises:
        BackendUnavailable: there is none, or no CUDA source to compile.
        ArgumentError: `XLNET_FAST_CUDA_ARCHS` is malformed.
    """
    if not recipe.cuda_sources():
        raise BackendUnavailable(f"there is no CUDA source below {recipe.csrc() / 'cuda'}")
    try:
        return nvcc.find()
    except nvcc.LeftOut as error:
        raise BackendUnavailable(str(error)) from error
    except ValueError as error:
        raise ArgumentError(str(error)) from error


def known_archs() -> tuple[int, ...]:
    """The chips of `CHIPS` that the nvcc here compiles for; raises as `find_nvcc`."""
    known = nvcc.known_archs(find_nvcc().command)
    return tuple(arch for arch in CHIPS if str(arch) in known)


def compile_report(
    archs: Sequence[int] = ARCHS,
    *,
    sources: str | None = None,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Compile every CUDA source for every chip.

    Args:
        archs: chips, 90 for sm_90a.
        sources: pattern of the file names to compile, "rel_attention_*"; default all, but of a
            kernel for fp16 that there is for bf16 too only the latter: they differ in conversions.
        workers: compilers at a time.
        on_progress: called with (done, total) after each compilation.

    Returns:
        A row per kernel and chip, in the order of the sources.

    Raises:
        BackendUnavailable: no nvcc, no source, no disassembler.
        ArgumentError: a chip that is not known, or a source that does not compile.
    """
    expect_known("arch", archs, known_archs())
    jobs = [(source, arch) for source in _matching(sources) for arch in archs]
    compile_one = partial(_compile, find_nvcc())
    compiled = run_jobs(compile_one, jobs, workers, on_progress, threads=True)
    return [row for of_source in compiled for row in of_source]


def _matching(pattern: str | None) -> list[Path]:
    """The sources that a pattern names; by default one for both half precisions."""
    everything = recipe.cuda_sources()
    if pattern is None:
        names = [source.name for source in everything if "_bfloat16" in source.name]
        stood_for = {name.replace("_bfloat16", "_float16") for name in names}
        return [source for source in everything if source.name not in stood_for]
    matching = [source for source in everything if source.match(pattern)]
    if not matching:
        raise ArgumentError(f"no CUDA source matches {pattern!r}")
    return matching


def _compile(compiler: Nvcc, job: tuple[Path, int]) -> list[Row]:
    """The kernels of one source for one chip, out of the cache where they are in there."""
    source, arch = job
    only = compiler._replace(archs=(_NAMES.get(arch, str(arch)),))
    cached = _cache_file(only, source)
    if cached is not None and cached.is_file():
        kept: list[Row] = json.loads(cached.read_text(encoding="utf-8"))
        return kept
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        used = usage.parse_ptxas(run_nvcc(only, source, cubin))
        code = sass.disassemble(sass.nvdisasm(), cubin, "nvcc") if used else {}
    shown = f"csrc/{source.relative_to(recipe.csrc()).as_posix()}"
    names = sorted((usage.short_name(name), key) for key, name in usage.demangle([*used]).items())
    found = [_row(shown, name, arch, used[key], code[key]) for name, key in names]
    if cached is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written to is none
            files.write_whole(cached, json.dumps(found))
    return found


def _row(source: str, name: str, arch: int, used: dict[str, int], code: sass.Function) -> Row:
    """What ptxas says of a kernel, what its machine code shows, and how many blocks of it fit.

    The last template argument of a kernel whose shared memory is a constant is its bytes
    (`csrc/cuda/launch.h`).
    """
    told = re.fullmatch(r"(.*), (\d+)>", name)
    dynamic_bytes = int(told[2]) if told else None
    blocks = None
    if code.max_threads is not None:
        shared = used["shared_bytes"] + (dynamic_bytes or 0)
        blocks = blocks_per_multiprocessor(arch, used["registers"], code.max_threads, shared)
    with_product = sass.in_innermost_loops(code, around=PRODUCT)
    loops = with_product or sass.in_innermost_loops(code)
    return {
        "backend": "cuda",
        "source": source,
        "kernel": f"{told[1]}>" if told else name,
        "arch": arch,
        "registers": used["registers"],
        "stack_bytes": used["stack_bytes"],
        "spill_bytes": used["spill_bytes"],
        "shared_bytes": used["shared_bytes"],
        "max_threads": code.max_threads,
        "loop_spills": sass.loop_spills(code),
        "product_loop_spills": sass.local_accesses(with_product),
        "instructions": sass.count(code.instructions, COUNTED),
        "loop_instructions": sass.count(loops, COUNTED),
        "dynamic_bytes": dynamic_bytes,
        "blocks": blocks,
    }


def run_nvcc(compiler: Nvcc, source: Path, cubin: Path) -> str:
    """Compile for the one chip of `compiler`; what ptxas says of the kernels.

    Raises:
        ArgumentError: the source does not compile.
    """
    (name,) = compiler.archs
    command = [
        *compiler.command, *nvcc.FLAGS, f"-gencode=arch=compute_{name},code=sm_{name}",
        "-Xptxas", "-v", "-cubin", str(source), "-o", str(cubin),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise ArgumentError(
            f"{source} does not compile for sm_{name}, nvcc ends with exit code {done.returncode}"
            f"{nvcc.last_lines(done.stdout + done.stderr)}"
        )
    return done.stdout + done.stderr


# --- the cache -----------------------------------------------------------------------------------


def _cache_file(compiler: Nvcc, source: Path) -> Path | None:
    """Where the rows of a source are kept; None for a user without a home."""
    root = recipe.cache_root()
    if root is None:
        return None
    total = hashlib.sha256(f"{compiler.version} {compiler.archs} {nvcc.FLAGS}".encode())
    readers = (__file__, *(str(module.__file__) for module in (chips, rows, sass, usage)))
    for file in (*map(Path, readers), *_closure(source)):
        content = file.read_bytes()
        total.update(f"{file.name} {len(content)}\n".encode() + content)
    return root / "kernels-report" / f"{total.hexdigest()[:32]}.json"


def _closure(source: Path) -> list[Path]:
    """A source with all of our own headers that it may include, in a fixed order."""
    found: dict[Path, None] = {}
    waiting = [source.resolve()]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found[file] = None
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, flags=re.MULTILINE):
            waiting.append((file.parent / name).resolve())
    return list(found)
