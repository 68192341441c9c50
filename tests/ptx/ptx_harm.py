"""Kernels of this project whose PTX is changed, as a mistake might have changed it.

A kernel runs unharmed first, which says what lines of its text run at all. Each harm changes one of
those lines, and then the same run says whether anything is found.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import ptx_cuda
import ptx_machine
import ptx_triton
import torch
from attention_cases import Case, make_inputs
from attention_runs import by_formula, run_backward, run_forward
from yardstick import gradient_bounds

from xlnet_fast.tolerance import assert_within, error_and_bound

DTYPE = torch.bfloat16
CASE = Case(
    batch=1, rows=33, memory=38, heads=1, head_dim=32, segments=True, mask=("padding", "bits")
)
"""More than one tile of keys, and neither rows nor keys a multiple of anything."""


class Lines:
    """A kernel's text, and which of its lines run."""

    def __init__(self, text: str, ran: set[int]) -> None:
        self.text = text.splitlines()
        self.ran = ran

    def like(self, pattern: str) -> list[int]:
        """The lines that run and match, from 0, spaces at either end left out."""
        found = re.compile(pattern)
        return [
            i
            for i, line in enumerate(self.text)
            if i + 1 in self.ran and found.search(line.strip())
        ]

    def instead(self, place: int, line: str) -> str:
        """The text with another line in that place; no other line moves."""
        return "\n".join([*self.text[:place], line, *self.text[place + 1 :]])


# Each gives the texts that have the fault, one for each place where it can be.
Harm = Callable[[Lines], Iterator[str]]


def removed(pattern: str) -> Harm:
    def harm(lines: Lines) -> Iterator[str]:
        for place in lines.like(pattern):
            yield lines.instead(place, "")

    return harm


barrier_removed = removed(r"^bar\.sync\s+0;")
warp_barrier_removed = removed(r"^bar\.warp\.sync\s+-1;")


def barrier_in_a_branch(lines: Lines) -> Iterator[str]:
    """Eleven lanes of the first warp go around it."""
    around = (
        "{ .reg .pred few; .reg .b32 me; mov.u32 me, %tid.x; setp.lt.u32 few, me, 11; "
        "@few bra $around; bar.sync 0; $around: }"
    )
    for place in lines.like(r"^bar\.sync\s+0;"):
        yield lines.instead(place, around)


def wait_one_too_late(lines: Lines) -> Iterator[str]:
    for place in lines.like(r"^cp\.async\.wait_group"):
        found = re.search(r"wait_group\s+(\d+)", lines.text[place])
        assert found is not None
        yield lines.instead(place, f"cp.async.wait_group {int(found[1]) + 1};")


def swapped_fragment(operand: int) -> Harm:
    """The second and the third register of the left matrix, or both of the right, change places."""

    def harm(lines: Lines) -> Iterator[str]:
        for place in lines.like(r"mma\.sync.*;"):
            parts = re.findall(r"\{[^}]*\}", lines.text[place])
            registers = re.findall(r"%\w+", parts[operand])
            first = len(registers) // 2 - 1
            registers[first], registers[first + 1] = registers[first + 1], registers[first]
            parts[operand] = "{" + ", ".join(registers) + "}"
            name = lines.text[place].partition("{")[0]
            yield lines.instead(place, f"{name}{', '.join(parts)};")

    return harm


def swapped_tiles(lines: Lines) -> Iterator[str]:
    """The first and the last register that an ldmatrix writes change places."""
    for place in lines.like(r"^ldmatrix\.sync.*x4.*\{.*\},\s*\[.*\];"):
        found = re.match(r"(.*\{)(.*)(\}.*)", lines.text[place])
        assert found is not None
        registers = [part.strip() for part in found[2].split(",")]
        registers[0], registers[-1] = registers[-1], registers[0]
        yield lines.instead(place, found[1] + ", ".join(registers) + found[3])


def moved(pattern: str, by: int) -> Harm:
    """The address of an instruction in one line, some bytes further."""

    def harm(lines: Lines) -> Iterator[str]:
        for place in lines.like(pattern):
            found = re.match(r"(.*)\[([^\]]*)\](.*)", lines.text[place])
            if found is None:
                continue
            base, _, offset = re.sub(r"\s", "", found[2]).partition("+")
            yield lines.instead(place, f"{found[1]}[{base}+{int(offset or 0) + by}]{found[3]}")

    return harm


def product_waited_for_too_late(lines: Lines) -> Iterator[str]:
    for place in lines.like(r"^wgmma\.wait_group"):
        found = re.search(r"aligned\s+(\d+)", lines.text[place])
        assert found is not None
        yield lines.instead(place, f"wgmma.wait_group.sync.aligned {int(found[1]) + 1};")


def transposed_in_memory(lines: Lines) -> Iterator[str]:
    """The right operand of a product, whose last number says so."""
    for place in lines.like(r"^wgmma\.mma_async.*, [01];"):
        line, last = lines.text[place].rsplit(", ", 1)
        yield lines.instead(place, f"{line}, {1 - int(last.strip().rstrip(';'))};")


def swizzled_otherwise(lines: Lines) -> Iterator[str]:
    """A descriptor says 128 bytes for 64, or 32 for none: the lowest bit of what it says."""
    for place in lines.like(r"^or\.b64\s.*, -?\d{17,};"):
        line, last = lines.text[place].rsplit(", ", 1)
        bits = (int(last.strip().rstrip(";")) & (1 << 64) - 1) ^ (1 << 62)
        yield lines.instead(place, f"{line}, {bits - (1 << 64) if bits >> 63 else bits};")


def swapped_fragment_of_a_warpgroup(lines: Lines) -> Iterator[str]:
    """The second and the third register of the left operand change places."""
    for place in lines.like(r"^wgmma\.mma_async.*\}, \{"):
        found = re.match(r"(.*\}, \{)(%\w+,)(%\w+,)(%\w+,)(.*)", lines.text[place])
        assert found is not None
        before, a, b, c, after = found.groups()
        yield lines.instead(place, f"{before}{a}{c}{b}{after}")


def predicate_dropped(pattern: str) -> Harm:
    def harm(lines: Lines) -> Iterator[str]:
        for place in lines.like(r"^@!?%p\w+\s+" + pattern):
            yield lines.instead(place, re.sub(r"^\s*@\S+\s+", "", lines.text[place]))

    return harm


def zeros_not_filled_in(lines: Lines) -> Iterator[str]:
    """A copy takes all its bytes, whatever of them is there."""
    for place in lines.like(r"cp\.async\.c[ag].*,\s*(\w+)\s*,\s*%\w+;"):
        line = re.sub(r",\s*(\w+)\s*,\s*%\w+;", r", \1, \1;", lines.text[place])
        yield lines.instead(place, line)


def comparison_turned(pattern: str) -> Harm:
    """What holds and what does not change places."""
    opposite = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}

    def harm(lines: Lines) -> Iterator[str]:
        for place in lines.like(pattern):
            line = re.sub(
                r"setp\.(\w\w)\.", lambda found: f"setp.{opposite[found[1]]}.", lines.text[place]
            )
            yield lines.instead(place, line)

    return harm


class Runner:
    """One kernel of one backend: its unharmed run, and runs of other texts in its place."""

    def __init__(self, backend: str, kernel: str, arch: int) -> None:
        self.kernel = kernel
        self.arch: int | str = arch if backend == "triton" else {80: "80", 90: "90a"}[arch]
        self.host: Any = {"triton": ptx_triton, "cuda": ptx_cuda}[backend]
        name = f"xlnet_fast.kernels.{backend}.rel_attention"
        self.module: Any = importlib.import_module(name)
        with ptx_machine.memory():
            self.x = make_inputs(CASE, DTYPE, seed=5)
            random = torch.randn(self.x.q.shape, generator=torch.Generator().manual_seed(5))
            self.d_out = random.to(DTYPE)
        (self.exact, exact_gradients), (self.eager, eager_gradients) = (
            by_formula(self.x, CASE, kind) for kind in (torch.float64, DTYPE)
        )
        of_dtype = {torch.float64: exact_gradients, DTYPE: eager_gradients}
        self.right, self.bounds = gradient_bounds(
            lambda kind, d: of_dtype[kind](d), DTYPE, self.d_out
        )
        self.text = ""
        self.ran: set[int] = set()
        self.missing_bytes = 0
        self.run(lambda text: text)
        assert self.ran, f"no kernel like {kernel} ran"
        self.lines = Lines(self.text, self.ran)

    def run(self, change: Callable[[str], str], seed: int = 0) -> None:
        """Both passes, or the forward pass alone, with a text in place of the kernel's.

        Raises:
            Fault: the machine found something.
            AssertionError: a result is out of tolerance.
        """
        with (
            self._changed(change),
            ptx_machine.memory(),
            self.host.running(arch=self.arch, seed=seed),
        ):
            forward = run_forward(self.x, CASE, self.module, "cpu")
            assert_within(forward.out, self.eager, self.exact, "out")
            if "forward" in self.kernel:
                return
            for name, grad in run_backward(forward, self.x, CASE, self.d_out, self.module).items():
                error, _ = error_and_bound(grad, grad, self.right[name])
                assert error <= self.bounds[name], f"d {name}: error {error:.3e} out of tolerance"

    def verdict(self, text: str) -> str | None:
        """What is said of a text in place of the kernel's; None where it passes."""
        try:
            self.run(lambda _: text)
        except (ptx_machine.Fault, AssertionError) as problem:
            return str(problem)
        return None

    @contextmanager
    def _changed(self, change: Callable[[str], str]) -> Iterator[None]:
        launch = ptx_machine.launch

        def launched(kernel: Any, *arguments: Any, shared_bytes: int, **options: Any) -> Any:
            mine = self.kernel in kernel.name
            shared_bytes -= self.missing_bytes if mine else 0
            counters = launch(kernel, *arguments, shared_bytes=shared_bytes, **options)
            if mine:
                self.ran |= {line for line, times in counters.by_line.items() if times}
            return counters

        with ExitStack() as changes:
            changes.enter_context(mock.patch.object(ptx_machine, "launch", launched))
            changes.enter_context(self._loading(change))
            yield

    def _loading(self, change: Callable[[str], str]) -> Any:
        @functools.cache
        def changed(text: str) -> Any:
            self.text = self.text or text
            return ptx_machine.load(change(text))

        if self.host is ptx_triton:
            of_text = ptx_triton._loaded
            entry = re.compile(rf"\.entry \w*{self.kernel}\w*\(")

            def loaded(text: str) -> Any:
                return changed(text) if entry.search(text) else of_text(text)

            return mock.patch.object(ptx_triton, "_loaded", loaded)
        of_name = ptx_cuda.load

        def load(name: str, arch: str) -> Any:
            return (
                changed(_cuda_text(name, arch))[name]
                if self.kernel in name
                else of_name(name, arch)
            )

        return mock.patch.object(ptx_cuda, "load", load)


@functools.cache
def _cuda_text(name: str, arch: str) -> str:
    return ptx_cuda.ptx_of(ptx_cuda._source_of(name), arch).read_text(encoding="utf-8")


@functools.cache
def runner(backend: str, kernel: str, arch: int = 80) -> Runner:
    """One for all tests of a kernel: a process runs it unharmed once."""
    return Runner(backend, kernel, arch)
