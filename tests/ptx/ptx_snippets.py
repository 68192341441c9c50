"""Runs a few instructions on a table of operands: a row a thread, one kernel a table.

The kernel around them reads a row's operands from memory into registers of their names, runs the
instructions and writes the registers that are asked for. It runs three times: with all lanes of
every warp, and with either half of them, which must change nothing of any row.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ptx_machine
import torch

HEADER = ".version 8.8\n.target sm_80\n.address_size 64\n"
THREADS = 128
"""Of a block that runs a table."""
SCRATCH = """\
  .reg .pred %p<8>;
  .reg .b16 %h<8>;
  .reg .b32 %r<8>;
  .reg .b64 %q<8>;
"""
"""Registers that a table's instructions may use in between."""
_LANES = (0xFFFFFFFF, 0x5A5A33C0, 0xA5A5CC3F)
_UNWRITTEN = 0xFF
_WIDTHS = {np.dtype(np.uint16): 16, np.dtype(np.uint32): 32, np.dtype(np.uint64): 64}


def table(
    body: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """What some instructions make of each row of a table.

    Args:
        body: the instructions. They find an operand `a` in `%a`, and have `SCRATCH`.
        inputs: columns of equal length: uint16, uint32 or uint64 for registers as wide, bool for
            predicates.
        outputs: registers that are read when they have run, by name without "%": their bits, or 1
            for a predicate.

    Returns:
        A column for each output, of the unsigned integers as wide or of bool.

    Raises:
        AssertionError: a row depends on which other lanes are there, or a lane that isn't wrote.
    """
    kernel = ptx_machine.load(kernel_text(body, inputs, outputs))["table"]
    rows = len(next(iter(inputs.values())))
    padded = -(-rows // THREADS) * THREADS
    here = np.arange(padded) % 32
    columns = {}
    for lanes in _LANES:
        mine = (lanes >> here) & 1 == 1
        for name, found in _launched(kernel, inputs, outputs, padded, lanes).items():
            columns.setdefault(name, found)
            unwritten = found[~mine].view(np.uint8)
            assert (unwritten == _UNWRITTEN).all(), f"{body}: lanes that are not there wrote {name}"
            same = (found == columns[name])[mine]
            assert same.all(), f"{body}: {name} depends on what lanes are there"
    return {
        name: found[:rows] == 1 if outputs[name] == 1 else found[:rows]
        for name, found in columns.items()
    }


def kernel_text(body: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, int]) -> str:
    """The kernel that `table` runs."""
    columns = [*inputs, *outputs]
    parameters = [f".param .u64 at_{name}" for name in columns] + [".param .u32 lanes"]
    lines = ["  mov.u32 %i_lane, %laneid;", "  ld.param.u32 %lanes, [lanes];"]
    lines += ["  shr.u32 %lanes, %lanes, %i_lane;", "  and.b32 %lanes, %lanes, 1;"]
    lines += ["  setp.eq.u32 %absent, %lanes, 0;", "  @%absent bra END;"]
    lines += ["  mov.u32 %i_row, %ctaid.x;", "  mov.u32 %i_thread, %tid.x;"]
    lines += [f"  mad.lo.s32 %i_row, %i_row, {THREADS}, %i_thread;"]
    declared = []
    for name, values in inputs.items():
        width = 1 if values.dtype == np.bool_ else _WIDTHS[values.dtype]
        declared.append(_register(name, width))
        lines += [*_address(name, width), *_loaded(name, width)]
    lines.append(body)
    for name, width in outputs.items():
        if name not in inputs:
            declared.append(_register(name, width))
        lines += [*_address(name, width), *_stored(name, width)]
    return (
        f"{HEADER}.visible .entry table(\n  "
        + ",\n  ".join(parameters)
        + "\n)\n{\n"
        + "".join(declared)
        + "  .reg .b32 %i_lane, %lanes, %i_row, %i_thread, %flag;\n"
        + "  .reg .b64 %address, %place;\n  .reg .pred %absent;\n"
        + SCRATCH
        + "\n".join(lines)
        + "\nEND:\n  ret;\n}\n"
    )


def _register(name: str, width: int) -> str:
    return f"  .reg .pred %{name};\n" if width == 1 else f"  .reg .b{width} %{name};\n"


def _address(name: str, width: int) -> list[str]:
    bytes_ = 4 if width == 1 else width // 8
    return [
        f"  ld.param.u64 %address, [at_{name}];",
        f"  mul.wide.u32 %place, %i_row, {bytes_};",
        "  add.s64 %address, %address, %place;",
    ]


def _loaded(name: str, width: int) -> list[str]:
    if width == 1:
        return ["  ld.global.b32 %flag, [%address];", f"  setp.ne.b32 %{name}, %flag, 0;"]
    return [f"  ld.global.b{width} %{name}, [%address];"]


def _stored(name: str, width: int) -> list[str]:
    if width == 1:
        return [f"  selp.b32 %flag, 1, 0, %{name};", "  st.global.b32 [%address], %flag;"]
    return [f"  st.global.b{width} [%address], %{name};"]


def _launched(
    kernel: Any,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, int],
    padded: int,
    lanes: int,
) -> dict[str, np.ndarray]:
    with ptx_machine.memory():
        tensors = [on_device(_padded(values, padded)) for values in inputs.values()]
        found = {
            name: torch.full(
                (padded * max(width, 32 if width == 1 else 0) // 8,), _UNWRITTEN, dtype=torch.uint8
            )
            for name, width in outputs.items()
        }
        pointers = [each.data_ptr() for each in (*tensors, *found.values())]
        parameters = struct.pack(f"<{len(pointers)}QI", *pointers, lanes)
        ptx_machine.launch(kernel, (padded // THREADS,), THREADS, parameters)
        return {
            name: np.array(tensor.numpy()).view(column_dtype(outputs[name]))
            for name, tensor in found.items()
        }


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    values = values.astype(np.uint32) if values.dtype == np.bool_ else values
    return np.resize(values, rows)  # which repeats them


def column_dtype(width: int) -> type[np.unsignedinteger]:
    """The unsigned integers that hold a register of so many bits; 1 is a predicate."""
    widths: dict[int, type[np.unsignedinteger]]
    widths = {1: np.uint32, 16: np.uint16, 32: np.uint32, 64: np.uint64}
    return widths[width]


def on_device(values: np.ndarray) -> torch.Tensor:
    """The bytes of an array in a tensor of their own."""
    tensor = torch.empty(values.nbytes, dtype=torch.uint8)
    tensor.copy_(torch.from_numpy(np.ascontiguousarray(values).view(np.uint8)))
    return tensor


def launched(
    text: str,
    values: Sequence[np.ndarray],
    grid: tuple[int, ...] = (1,),
    threads: int | tuple[int, ...] = 32,
    *,
    shared_bytes: int = 0,
    seed: int = 0,
) -> list[np.ndarray]:
    """Run the only kernel of a text on arrays, each a pointer parameter; returns them as it left.

    Args:
        text: a whole module.
        values: in the order of the parameters; they are copied.
    """
    (kernel,) = ptx_machine.load(text).values()
    with ptx_machine.memory():
        tensors = [on_device(each) for each in values]
        parameters = struct.pack(f"<{len(tensors)}Q", *(each.data_ptr() for each in tensors))
        ptx_machine.launch(kernel, grid, threads, parameters, shared_bytes=shared_bytes, seed=seed)
        return [
            np.array(tensor.numpy()).view(each.dtype)
            for tensor, each in zip(tensors, values, strict=True)
        ]


def entry(
    body: str,
    parameters: Sequence[str] = ("out",),
    registers: str = "",
    directives: str = "",
    outside: str = "",
) -> str:
    """A module with one kernel, `test`, whose parameters are pointers, for `launched`.

    Each parameter is in a register of its name; `SCRATCH`, `%tid_x` and `%lane` are there too.
    """
    declared = ",\n  ".join(f".param .u64 at_{name}" for name in parameters)
    loads = "".join(
        f"  .reg .b64 %{name};\n  ld.param.u64 %{name}, [at_{name}];\n" for name in parameters
    )
    return (
        f"{HEADER}{outside}\n.visible .entry test(\n  {declared}\n)\n{directives}{{\n{SCRATCH}"
        f"{registers}  .reg .b32 %tid_x, %lane;\n{loads}"
        f"  mov.u32 %tid_x, %tid.x;\n  mov.u32 %lane, %laneid;\n{body}\n}}\n"
    )


def rows(*columns: Sequence[int], extra: Sequence[Sequence[int]] = ()) -> list[tuple[int, ...]]:
    """All combinations of the columns' values, and more rows."""
    found: list[tuple[int, ...]] = [()]
    for column in columns:
        found = [(*row, value) for row in found for value in column]
    return found + [tuple(row) for row in extra]


def compare(
    body: str,
    operands: Mapping[str, int],
    values: Sequence[tuple[int, ...]],
    output: int,
    truth: Callable[..., int | None],
    is_nan: Callable[[int], bool] = lambda bits: False,
    within: Callable[[int, int], bool] = lambda found, expected: found == expected,
) -> None:
    """Hold `%d` after some instructions against a truth, row by row.

    Args:
        operands: their names and bits, as `table` has them; a predicate has 1.
        values: a row of operands each.
        output: the bits of `%d`.
        truth: of a row's operands; None where the result is any NaN.
        is_nan: whether a result's bits are a NaN's.
        within: whether a result is near enough to the truth; default bit by bit.
    """
    columns = {
        name: np.array([row[place] for row in values], column_dtype(width))
        for place, (name, width) in enumerate(operands.items())
    }
    for name, width in operands.items():
        if width == 1:
            columns[name] = columns[name] == 1
    found = table(body, columns, {"d": output})["d"]
    wrong = []
    for row, result in zip(values, map(int, found), strict=True):
        expected = truth(*row)
        good = is_nan(result) if expected is None else within(result, expected)
        if not good:
            said = "NaN" if expected is None else f"{expected:#x}"
            wrong.append(f"{', '.join(f'{each:#x}' for each in row)}: {result:#x}, not {said}")
    assert not wrong, f"{body}: {len(wrong)} of {len(values)} rows:\n" + "\n".join(wrong[:10])
