"""Deliberate faults in the attention kernels, each of which the emulated tests must find."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cuda_emulation
import pytest
import torch
from attention_cases import CASES
from attention_runs import check_output

from xlnet_fast.kernels.cuda import entries, rel_attention

MODULE = [Path(__file__).with_name(name) for name in ("mutant.cpp", "mutant_kernel.cpp")]
RUN = (
    "masks-none", "masks-all-self", "masks-padding-all-of-one", "shapes-uni-unmasked",
    "shapes-positions", "shapes-positions-absent", "window-chunks-odd",
)  # fmt: skip
"""Cases of head dim 32 that have rows in order and rows at positions, and many tiles of keys."""


@dataclass(frozen=True)
class Fault:
    """A piece of a header, in the line it is in, and what takes its place."""

    file: str
    text: str
    instead: str
    said: str  # by the emulation, or by the check of the result


RACE = r"another thread (wrote|used) it without a barrier since"
COPY = "while a copy to it is under way"
FAULTS = {
    "a barrier before a tile is read": Fault(
        "rel_attention_forward.cuh", "    block_barrier();\n    KeyEntry next", "    KeyEntry next",
        RACE,
    ),
    "the wait for a tile": Fault(
        "rel_attention_forward.cuh", "    wait_copies<0>();\n", "", COPY,
    ),
    "rows of r that a step copies": Fault(
        "rel_attention_forward.cuh", "begin_r_copies<Shape, Keys>(here, block.first_row, tile + 1,",
        "begin_r_copies<Shape, Keys>(here, block.first_row, tile,", "error",
    ),
    "a barrier before a tile is read, at positions": Fault(
        "rel_attention_forward_positions.cuh", "    block_barrier();\n    KeyEntry next",
        "    KeyEntry next", RACE,
    ),
    "the wait for a tile, at positions": Fault(
        "rel_attention_forward_positions.cuh", "    wait_copies<0>();\n", "", COPY,
    ),
    "which streams are left to the other kernel": Fault(
        "rel_attention_forward_positions.cuh", "return of.positions != nullptr;",
        "return of.positions == nullptr;", "outside of every|error",
    ),
    "a ring that is a tile too short": Fault(
        "shapes.cuh", "max_of(kRows + 2 * Keys,", "max_of(kRows + Keys,",
        f"{RACE}|{COPY}",
    ),
    "the wait for the last rows of a window": Fault(
        "window.cuh", "        wait_copies<0>();\n", "", COPY,
    ),
    "a barrier before rows of a window are overwritten": Fault(
        "window.cuh", "      use(chunk, stage, chunk % 2 * 16);\n      warp_barrier();\n",
        "      use(chunk, stage, chunk % 2 * 16);\n", RACE,
    ),
    "a barrier before a strip is read": Fault(
        "window.cuh", "  warp_barrier();\n  strip.load(x, place);", "  strip.load(x, place);", RACE,
    ),
    "whether there is such a key": Fault(
        "attention.cuh", "    if (j < 0 || j >= keys()) return kNoKey;\n", "", "outside of every",
    ),
    "whether there is such a row": Fault(
        "attention.cuh", "    return index(upper) < static_cast<int>(stream.rows);",
        "    return true;", "outside of every",
    ),
    "whether there is such a row of r": Fault(
        "attention.cuh", "row < static_cast<int>(all.table) && p < keys()", "p < keys()",
        "outside of every",
    ),
    "the chunk that a window is counted from": Fault(
        "limits.cuh", "return position - (within < 0 ? within + chunk : within);",
        "return position;", "error",
    ),
    "whether a strip has such a column": Fault(
        "window.cuh", "        if (holds<kNear>(column, from))\n", "", f"{RACE}|is beyond its",
    ),
    "at which columns a strip has to be asked": Fault(
        "window.cuh", "(from >= 15 || column >= 0)", "(from >= 8 || column >= 0)",
        f"{RACE}|is beyond its|error",
    ),
    "the sum over the lanes of a row": Fault(
        "online_softmax.cuh", "sum[0] = row_sum(sum[0]), sum[1] = row_sum(sum[1]);", "", "error",
    ),
}  # fmt: skip


def build(csrc: Path) -> ModuleType:
    def taken(path: Path) -> bool:
        return path.parent.name == "emulation" and "bindings" not in path.name

    return cuda_emulation.build_or_skip(csrc=csrc, only=taken, extra=MODULE, name="_cuda_mutant")


def run(module: ModuleType, names: tuple[str, ...] = RUN) -> None:
    with entries.emulating(module):
        for name in names:
            check_output(name, torch.bfloat16, rel_attention, "cpu", CASES[name])


def test_without_a_fault_all_is_well():
    run(build(cuda_emulation.CSRC))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name, tmp_path):
    fault = FAULTS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(cuda_emulation.CSRC, csrc)
    header = csrc / "cuda" / fault.file
    text = header.read_text(encoding="utf-8")
    assert text.count(fault.text) == 1, "the fault is to be in one place: adapt it to the source"
    header.write_text(text.replace(fault.text, fault.instead), encoding="utf-8")
    with pytest.raises((RuntimeError, AssertionError), match=fault.said):
        run(build(csrc))
