"""Pickles read as data: no name in them is imported, and nothing is called.

A vocabulary that Hugging Face saved is a pickle of its tokenizer's attributes, and a pickle can
name any function and have it called. Python's own reader, restricted by `find_class`, would still
hand out real classes, which a file can change, and as much memory as a few bytes ask for. This one
knows the operations of protocols 0 to 5 and cannot import: `OrderedDict` and `Counter` become
dicts, objects that such files are known to hold besides become :class:`Foreign`, which is no more
than a name, and every other name is refused. What the operations do is in CPython's `pickletools`.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import Any

from xlnet_fast.errors import ArgumentError

from .pickle_state import CutShort, Foreign, PickleState
from .pickle_steps import STEPS, STOP

__all__ = ["MOST_BYTES", "MOST_STEPS", "Foreign", "load"]

MOST_BYTES = 64 * 2**20
"""Of a file, and of what is packed in it: a vocabulary of 800,000 words takes 25 MiB."""
MOST_STEPS = 12_000_000
"""Operations of a pickle, which bound its memory: 800,000 words take five million, and eight in a
pickle of Python 2."""

_SHORT_TEXT, _TEXT = pickle.SHORT_BINUNICODE[0], pickle.BINUNICODE[0]
_GET, _LONG_GET = pickle.BINGET[0], pickle.LONG_BINGET[0]
_MEMOIZE, _LONG_PUT = pickle.MEMOIZE[0], pickle.LONG_BINPUT[0]
_INTEGER_2, _INTEGER_4 = pickle.BININT2[0], pickle.BININT[0]
_CAREFULLY = 0x100  # makes a code none of these
_four = struct.Struct("<I").unpack_from
_four_signed = struct.Struct("<i").unpack_from

# What torch.save wrote before its zip files: this number, a version and the machine come first.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


def load(data: bytes, what: str) -> Any:
    """What a pickle holds, or a file of `torch.save`, old or new, without tensors.

    Dicts keep those of their entries whose keys are text. `what` names the file in messages.

    Raises:
        ArgumentError: it is too large, cut short or damaged, or wants anything that is refused.
    """
    if data.startswith(b"PK\x03\x04"):
        data = _packed(data, what)
    state = PickleState(data, what)
    value = _next(state)
    if type(value) is int and value == _TORCH_MAGIC:
        _next(state)
        _next(state)
        value = _next(state)
    return value


def _packed(data: bytes, what: str) -> bytes:
    """The pickle in a zip file of `torch.save`."""
    content = None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name for name in archive.namelist() if f"/{name}".endswith("/data.pkl")]
            if len(names) == 1:
                with archive.open(names[0]) as member:
                    content = member.read(MOST_BYTES + 1)
    except Exception as error:  # a zip that was cut short raises almost anything
        raise ArgumentError(
            f"{what} is a zip file that is cut short or damaged: {type(error).__name__}: {error}"
        ) from error
    if content is None:
        raise ArgumentError(f"{what} is a zip file, but none that torch.save wrote")
    if len(content) > MOST_BYTES:
        raise ArgumentError(
            f"{what} holds a pickle of more than {MOST_BYTES >> 20} MiB, and no vocabulary needs it"
        )
    return content


def _next(state: PickleState) -> Any:
    """The value of the next pickle; raises as :func:`load` does."""
    what = state.what
    try:
        value, found = _run(state)
    except ArgumentError:
        raise
    except CutShort:
        raise ArgumentError(
            f"{what} is cut short: its pickle goes on after its last byte; copy it anew"
        ) from None
    # What a damaged file asks for: items of an empty stack or memo, letters for digits, ...
    except (LookupError, TypeError, ValueError, struct.error) as error:
        raise ArgumentError(
            f"{what} is no pickle, or a damaged one: {type(error).__name__}: {error}"
        ) from error
    if not found:
        raise ArgumentError(
            f"{what} is refused: its pickle takes more than {MOST_STEPS:,} operations, and no "
            "vocabulary does"
        )
    return value


def _run(state: PickleState) -> tuple[Any, bool]:
    """The value of the next pickle, and whether it came before the operations were too many.

    The operations that write a word, and look one up, are here and not in `STEPS`: of two million
    operations all but some dozens are of these, and a call for each would take most of the time.
    """
    state.begin()
    data, memo = state.data, state.memo
    at, size = state.at, len(data)
    stack, push = state.stack, state.stack.append
    for _ in range(MOST_STEPS):
        if at + 4 >= size:  # where operands may be missing: the steps look
            state.at = at
            if at >= size:
                raise CutShort
            code = data[at] | _CAREFULLY
        else:
            code = data[at]
        at += 1
        if code == _SHORT_TEXT:
            start = at + 1
            at = start + data[at]
            if at > size:
                raise CutShort
            push(str(data[start:at], "utf-8"))
        elif code == _TEXT:
            start = at + 4
            at = start + _four(data, at)[0]
            if at > size:
                raise CutShort
            push(str(data[start:at], "utf-8"))
        elif code == _MEMOIZE:
            memo[len(memo)] = stack[-1]
        elif code == _LONG_GET:
            push(memo[_four(data, at)[0]])
            at += 4
        elif code == _GET:
            push(memo[data[at]])
            at += 1
        elif code == _INTEGER_2:
            push(data[at] | data[at + 1] << 8)
            at += 2
        elif code == _INTEGER_4:
            push(_four_signed(data, at)[0])
            at += 4
        elif code == _LONG_PUT and _four(data, at)[0] < size:
            memo[_four(data, at)[0]] = stack[-1]
            at += 4
        else:
            code &= 0xFF
            state.at = at
            if code == STOP:
                return stack.pop(), True
            step = STEPS.get(code)
            if step is None:
                raise _unknown(code, state)
            step(state)
            at = state.at
    return None, False


def _unknown(code: int, state: PickleState) -> ArgumentError:
    """What to say of an operation that is not in `STEPS`."""
    from pickletools import opcodes

    operation = next((one for one in opcodes if one.code == chr(code)), None)
    if operation is None:
        return ArgumentError(
            f"{state.what} is no pickle, or a damaged one: byte {state.at - 1} is 0x{code:02x}, "
            "no operation of one"
        )
    means = ", for a tensor or another object outside it" if "PERSID" in operation.name else ""
    return ArgumentError(
        f"{state.what} is refused: it wants the operation {operation.name}{means}, and a "
        "vocabulary needs none such"
    )
