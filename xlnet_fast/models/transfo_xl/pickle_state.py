"""What a pickle has built so far, when it is read as data: see :mod:`.pickles`."""

from __future__ import annotations

from typing import Any

from xlnet_fast.errors import ArgumentError

_MAPPINGS = frozenset({"collections.OrderedDict", "collections.Counter"})
# What Hugging Face's tokenizers hold besides: as nothing is imported, none of it can do harm.
_KNOWN = frozenset({
    "re._compile", "copyreg._reconstructor", "copy_reg._reconstructor", "_codecs.encode",
    "builtins.object", "builtins.set", "builtins.frozenset",
    "__builtin__.object", "__builtin__.set", "__builtin__.frozenset",
})  # fmt: skip
_KNOWN_PACKAGES = frozenset(
    {"sacremoses", "tokenizers", "transformers", "pytorch_transformers", "pytorch_pretrained_bert"}
)
_MOST_DIGITS = 100


class Foreign:
    """An object of a class that is not read: all that is known of it is the name of the class."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Named:
    """A class or function that a pickle names: "module.name", and not the thing itself."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class CutShort(Exception):
    """The bytes end before the pickle does."""


class PickleState:
    """The bytes with the place reached in them, and the stack, marks and memo of a pickle.

    Its methods raise `CutShort` where the bytes end, and `LookupError`, `TypeError` or `ValueError`
    where they make no sense.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what = data, what
        self.at = 0
        self._copied = 0
        self.begin()

    def begin(self) -> None:
        """Forget what the pickle before this one left."""
        # The stack stays this list: the loop of operations holds it.
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, size: int) -> bytes:
        """The next bytes."""
        end = self.at + size
        if end > len(self.data):
            raise CutShort
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def number(self, size: int, signed: bool = False) -> int:
        """An integer of so many bytes."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> bytes:
        """The rest of a line, without its end."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise CutShort
        line = self.data[self.at : end]
        self.at = end + 1
        return line

    def digits(self) -> str:
        """A line that holds a number."""
        line = self.line()
        if len(line) > _MOST_DIGITS:
            raise ValueError(f"a number of {len(line)} digits")
        return line.decode()

    def remember(self, index: int) -> None:
        """Put what is on top of the stack into the memo."""
        # Each takes a byte. Larger ones could be chosen so that a dict of them takes hours.
        if not 0 <= index < len(self.data):
            raise ValueError(f"place {index} of the memo")
        self.memo[index] = self.stack[-1]

    def since_mark(self) -> list[Any]:
        """Take off the stack what came after the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def named(self, module: Any, name: Any) -> Named:
        """A name, if it is one that may stand in the file of a vocabulary.

        Raises:
            ArgumentError: it is another.
        """
        if type(module) is not str or type(name) is not str:
            raise TypeError("a name that is no text")
        full = f"{module}.{name}"
        from_known = module.partition(".")[0] in _KNOWN_PACKAGES and "." not in name
        if not (full in _MAPPINGS or full in _KNOWN or from_known):
            raise ArgumentError(
                f"{self.what} is refused: it wants {full[:200]}, and a vocabulary needs no more "
                "than lists, dicts, OrderedDict and Counter; nothing in it was run"
            )
        return Named(full)

    def made(self, maker: Any, args: Any) -> Any:
        """What stands for `maker(*args)`: a dict, or what is not read."""
        if type(maker) is not Named:
            raise TypeError("a call of what is no class")
        if maker.name not in _MAPPINGS:
            return Foreign(maker.name)
        if not args:
            return {}
        (items,) = args
        if type(items) is dict:
            return items
        if type(items) is not list:
            raise TypeError("an OrderedDict of what is no list")
        # Python 2 wrote the pairs of an OrderedDict, and each took bytes: the same list again and
        # again would take more memory than the file has.
        self._copied += len(items)
        if self._copied > len(self.data):
            raise ValueError("more pairs than the file has room for")
        return with_text_keys([key for key, _ in items], [value for _, value in items])


def with_text_keys(keys: list[Any], values: list[Any]) -> dict[str, Any]:
    """A dict of those entries whose keys are text: numbers can be chosen so that it takes hours."""
    if len(keys) != len(values):
        raise ValueError("a key without a value")
    return {key: value for key, value in zip(keys, values, strict=True) if type(key) is str}
