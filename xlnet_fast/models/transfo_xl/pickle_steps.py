"""The operations of pickles, protocols 0 to 5, that data is made of: see :mod:`.pickles`.

Left out, and so refused, are persistent ids, extension codes, and the buffers of protocol 5, which
ask for memory before there are bytes for it.
"""

from __future__ import annotations

import pickle
import struct
from _codecs import escape_decode
from collections.abc import Callable
from typing import Any

from .pickle_state import CutShort, Foreign, PickleState, with_text_keys

Step = Callable[[PickleState], None]
_LATEST_PROTOCOL = 5

# ---- what is put on the stack ----


def _text(width: int) -> Step:
    """A string, after its length in so many bytes."""

    def step(state: PickleState) -> None:
        state.stack.append(str(state.take(state.number(width)), "utf-8"))

    return step


def _bytes(width: int) -> Step:
    return lambda state: state.stack.append(state.take(state.number(width)))


def _integer(width: int, signed: bool = False) -> Step:
    return lambda state: state.stack.append(state.number(width, signed))


def _long(width: int) -> Step:
    """An integer, after its length in so many bytes."""
    return lambda state: state.stack.append(state.number(state.number(width), signed=True))


def _constant(value: Any) -> Step:
    return lambda state: state.stack.append(value)


def _integer_line(state: PickleState) -> None:
    digits = state.digits()
    # Protocol 0 writes False and True so.
    state.stack.append(digits == "01" if digits in ("00", "01") else int(digits.rstrip("L")))


def _string_line(state: PickleState) -> None:
    line = state.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("a string without its quotes")
    state.stack.append(escape_decode(line[1:-1])[0].decode())


def _float(state: PickleState) -> None:
    state.stack.append(struct.unpack(">d", state.take(8))[0])


# ---- memo, marks, and what stands before a pickle ----


def _protocol(state: PickleState) -> None:
    version = state.number(1)
    if version > _LATEST_PROTOCOL:
        raise ValueError(f"protocol {version}, and those up to {_LATEST_PROTOCOL} are known")


def _frame(state: PickleState) -> None:
    if state.number(8) > len(state.data) - state.at:
        raise CutShort


def _put(width: int) -> Step:
    return lambda state: state.remember(state.number(width))


def _get(width: int) -> Step:
    return lambda state: state.stack.append(state.memo[state.number(width)])


def _pop(state: PickleState) -> None:
    if state.marks and state.marks[-1] == len(state.stack):
        state.marks.pop()
    else:
        state.stack.pop()


# ---- lists, tuples, dicts, sets ----


def _tuple(size: int) -> Step:
    def step(state: PickleState) -> None:
        items = [state.stack.pop() for _ in range(size)]
        state.stack.append(tuple(reversed(items)))

    return step


def _extend(state: PickleState, items: list[Any]) -> None:
    target = state.stack[-1]
    if type(target) is list:
        target.extend(items)
    elif type(target) is not Foreign:
        raise TypeError("items for what is no list")


def _update(state: PickleState, items: list[Any]) -> None:
    target = state.stack[-1]
    if type(target) is dict:
        target.update(with_text_keys(items[::2], items[1::2]))
    elif type(target) is not Foreign:
        raise TypeError("entries for what is no dict")


def _dict(state: PickleState) -> None:
    items = state.since_mark()
    state.stack.append(with_text_keys(items[::2], items[1::2]))


def _set_item(state: PickleState) -> None:
    value, key = state.stack.pop(), state.stack.pop()
    _update(state, [key, value])


def _frozenset(state: PickleState) -> None:
    state.since_mark()
    state.stack.append(Foreign("frozenset"))


# ---- names, and objects ----


def _global(state: PickleState) -> None:
    module = state.line().decode()
    state.stack.append(state.named(module, state.line().decode()))


def _stack_global(state: PickleState) -> None:
    name, module = state.stack.pop(), state.stack.pop()
    state.stack.append(state.named(module, name))


def _reduce(state: PickleState) -> None:
    args, maker = state.stack.pop(), state.stack.pop()
    state.stack.append(state.made(maker, args))


def _new_with_keywords(state: PickleState) -> None:
    state.stack.pop()
    _reduce(state)


def _object(state: PickleState) -> None:
    maker, *args = state.since_mark()
    state.stack.append(state.made(maker, args))


def _instance(state: PickleState) -> None:
    module = state.line().decode()
    maker = state.named(module, state.line().decode())
    state.stack.append(state.made(maker, state.since_mark()))


def _build(state: PickleState) -> None:
    # The attributes of an object: none is read of what is foreign, and a dict has none.
    state.stack.pop()


STOP = pickle.STOP[0]
STEPS: dict[int, Step] = {
    code[0]: step
    for code, step in {
        pickle.PROTO: _protocol,
        pickle.FRAME: _frame,
        pickle.NONE: _constant(None),
        pickle.NEWTRUE: _constant(True),
        pickle.NEWFALSE: _constant(False),
        pickle.INT: _integer_line,
        pickle.BININT: _integer(4, signed=True),
        pickle.BININT1: _integer(1),
        pickle.BININT2: _integer(2),
        pickle.LONG: _integer_line,
        pickle.LONG1: _long(1),
        pickle.LONG4: _long(4),
        pickle.FLOAT: lambda state: state.stack.append(float(state.digits())),
        pickle.BINFLOAT: _float,
        pickle.STRING: _string_line,
        pickle.BINSTRING: _text(4),
        pickle.SHORT_BINSTRING: _text(1),
        pickle.UNICODE: lambda state: state.stack.append(str(state.line(), "raw-unicode-escape")),
        pickle.SHORT_BINUNICODE: _text(1),
        pickle.BINUNICODE: _text(4),
        pickle.BINUNICODE8: _text(8),
        pickle.SHORT_BINBYTES: _bytes(1),
        pickle.BINBYTES: _bytes(4),
        pickle.BINBYTES8: _bytes(8),
        pickle.MARK: lambda state: state.marks.append(len(state.stack)),
        pickle.POP: _pop,
        pickle.POP_MARK: lambda state: state.since_mark().clear(),
        pickle.DUP: lambda state: state.stack.append(state.stack[-1]),
        pickle.PUT: lambda state: state.remember(int(state.digits())),
        pickle.BINPUT: _put(1),
        pickle.LONG_BINPUT: _put(4),
        pickle.MEMOIZE: lambda state: state.remember(len(state.memo)),
        pickle.GET: lambda state: state.stack.append(state.memo[int(state.digits())]),
        pickle.BINGET: _get(1),
        pickle.LONG_BINGET: _get(4),
        pickle.EMPTY_TUPLE: _constant(()),
        pickle.TUPLE: lambda state: state.stack.append(tuple(state.since_mark())),
        pickle.TUPLE1: _tuple(1),
        pickle.TUPLE2: _tuple(2),
        pickle.TUPLE3: _tuple(3),
        pickle.EMPTY_LIST: lambda state: state.stack.append([]),
        pickle.LIST: lambda state: state.stack.append(state.since_mark()),
        pickle.APPEND: lambda state: _extend(state, [state.stack.pop()]),
        pickle.APPENDS: lambda state: _extend(state, state.since_mark()),
        pickle.EMPTY_DICT: lambda state: state.stack.append({}),
        pickle.DICT: _dict,
        pickle.SETITEM: _set_item,
        pickle.SETITEMS: lambda state: _update(state, state.since_mark()),
        pickle.EMPTY_SET: lambda state: state.stack.append(Foreign("set")),
        pickle.ADDITEMS: lambda state: _extend(state, state.since_mark()),
        pickle.FROZENSET: _frozenset,
        pickle.GLOBAL: _global,
        pickle.STACK_GLOBAL: _stack_global,
        pickle.REDUCE: _reduce,
        pickle.NEWOBJ: _reduce,
        pickle.NEWOBJ_EX: _new_with_keywords,
        pickle.OBJ: _object,
        pickle.INST: _instance,
        pickle.BUILD: _build,
    }.items()
}
