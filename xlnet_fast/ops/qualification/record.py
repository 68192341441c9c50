"""The record of a qualification: what was proved of each backend on one kind of device, as JSON.

A record belongs to one :class:`Identity`: a device with the software that drives it. Its rows are
verdicts on classes of calls; a call asks for the least class that covers it (:func:`covering`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from xlnet_fast import files
from xlnet_fast.errors import ArgumentError

SCHEMA = 1
"""Raised when a key changes its meaning or goes."""

FORWARD, BACKWARD = "forward", "backward"
DIRECTIONS = (FORWARD, BACKWARD)
"""What a row is about: outputs alone, or outputs and every gradient."""

PASSED, FAILED, CRASHED, HUNG, UNAVAILABLE, NOT_RUN = (
    "passed", "failed", "crashed", "hung", "unavailable", "not_run",
)  # fmt: skip
STATUSES = (PASSED, FAILED, CRASHED, HUNG, UNAVAILABLE, NOT_RUN)
"""``failed``: wrong numbers, a touched guard band, other bits in a second run, or an exception."""

CLASSES: dict[str, dict[str, frozenset[str]]] = {
    "rel_attention": {
        "plain": frozenset(),
        "padded": frozenset({"padding", "segments"}),
        "dropout": frozenset({"padding", "segments", "dropout"}),
        "memory": frozenset({"padding", "segments", "dropout", "memory"}),
        "causal": frozenset({"padding", "segments", "dropout", "memory", "causal"}),
        "permuted": frozenset(
            {"padding", "segments", "dropout", "memory", "ranks", "positions"}
        ),
        "dense": frozenset({"padding", "segments", "dropout", "memory", "bits", "groups"}),
        "speech": frozenset({"padding", "dropout", "memory", "window", "start"}),
    },
    "two_stream_attention": {
        "permuted": frozenset(
            {"padding", "segments", "dropout", "memory", "ranks", "positions"}
        ),
        "dense": frozenset(
            {"padding", "segments", "dropout", "memory", "bits", "groups", "positions"}
        ),
    },
    "masked_softmax": {
        "plain": frozenset(),
        "all": frozenset(
            {"padding", "segments", "dropout", "ranks", "bits", "causal", "positions", "window"}
        ),
    },
    "concat_memory": {"all": frozenset({"memory"})},
    "linear": {"all": frozenset()},
}  # fmt: skip
"""Of each op, classes of calls by name: the features that a call of the class may have.

padding: ``mask.key_padding``; segments; dropout: of probabilities; memory: its keys and values
apart; causal: with ``same_length`` or without; ranks: of a permutation; bits: a dense mask;
positions: of query rows; groups: more than one table of positions; window: ``mask.window``; start:
``r_start`` of 1.
"""

HEAD_DIMS = (32, 64, 128)
"""Widths of the tiles that head dims are rounded up to."""


TILE_FIELDS = 7
"""Of a tile of a Triton kernel, as a record has it."""


def head_dim_class(head_dim: int) -> str:
    """The class of a head dim: "64" for one that fills its tile, "<64" for one that leaves room.

    Wider than every tile: "wide".
    """
    for width in HEAD_DIMS:
        if head_dim <= width:
            return str(width) if head_dim == width else f"<{width}"
    return "wide"


def covering(op: str, features: Iterable[str]) -> str | None:
    """The name of the least class of ``op`` that has all these features; None where none has."""
    wanted = frozenset(features)
    fitting = [(len(has), name) for name, has in CLASSES[op].items() if wanted <= has]
    return min(fitting)[1] if fitting else None


@dataclass(frozen=True)
class Identity:
    """What a record holds for; a change of any of it makes the record stale.

    Attributes:
        device: "cuda" or "cpu".
        name: of the device, as its driver says it.
        capability: compute capability, "9.0"; of a CPU the instruction set that its kernels take.
        multiprocessors: of a GPU; of a CPU its cores.
        driver: branch of the driver, "580"; "" on a CPU.
        torch, cuda, triton: versions; "" where there is none.
        kernels: digest of the package's kernel sources.
        extension: digest of the compiled extension; "" without.
    """

    device: str
    name: str
    capability: str
    multiprocessors: int
    driver: str
    torch: str
    cuda: str
    triton: str
    kernels: str
    extension: str

    def difference(self, other: Identity) -> str | None:
        """What differs in another identity, in words; None where nothing does."""
        for part in fields(self):
            own, others = getattr(self, part.name), getattr(other, part.name)
            if own != others:
                return f"{part.name} was {own or 'absent'!r} and is {others or 'absent'!r}"
        return None


@dataclass(frozen=True)
class Timing:
    """Medians of interleaved runs of one shape, microseconds; None where a rival was not timed.

    The baseline is what runs where nothing is proved: backend sdpa, of op linear ``F.linear``.
    """

    shape: str  # such as "8x512", batch x length
    time_us: float
    baseline_us: float | None
    hf_us: float | None


@dataclass(frozen=True)
class Row:
    """The verdict on one backend for one class of calls.

    Attributes:
        op, operands: of ``CLASSES``. backend: its name; of op "linear" "cpu" or "aten".
        dtype: "bfloat16". head_dim: as :func:`head_dim_class`; "" for ops without heads.
        direction: of ``DIRECTIONS``. status: of ``STATUSES``.
        reason: one sentence where it did not pass, else "".
        error, bound: of the tensor that came nearest to its bound; None where nothing was compared,
            or the error is infinite.
        timings: empty where nothing was timed.
    """

    op: str
    operands: str
    backend: str
    dtype: str
    head_dim: str
    direction: str
    status: str
    reason: str = ""
    error: float | None = None
    bound: float | None = None
    timings: tuple[Timing, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """What the row is about, without its backend."""
        return self.op, self.operands, self.dtype, self.head_dim, self.direction

    @property
    def time_us(self) -> float | None:
        """Geometric mean of its times; None without."""
        return _mean([timing.time_us for timing in self.timings])

    def speedup(self, over: str) -> float | None:
        """Geometric mean of the times of "baseline" or "hf" over its own; None where one lacks."""
        rivals: list[float | None] = [getattr(timing, f"{over}_us") for timing in self.timings]
        if not rivals or None in rivals:
            return None
        own = [timing.time_us for timing in self.timings]
        return _mean(rival / time for rival, time in zip(rivals, own, strict=True) if rival)


@dataclass(frozen=True)
class Record:
    """What was proved, when, and on what.

    Attributes:
        created: UTC, ISO 8601. seconds: that it took. full: whether by ``--full``.
        tiles: that Triton's attention kernels were proved and timed with, where they are not the
            safe ones: by `kernels.triton.tiles.entry_key` the fields of its `Config`.
    """

    identity: Identity
    rows: tuple[Row, ...]
    created: str
    seconds: float
    full: bool = False
    tiles: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The record as JSON text, with a checksum that tells an edited one."""
        content = {"schema": SCHEMA, **asdict(self)}
        return json.dumps({**content, "checksum": checksum(content)}, indent=1) + "\n"

    @property
    def failed(self) -> tuple[Row, ...]:
        """Those that were tried and did not pass."""
        return tuple(row for row in self.rows if row.status in (FAILED, CRASHED, HUNG))

    def rows_of(self, key: tuple[str, ...]) -> dict[str, Row]:
        """By backend, the rows about a class; the key is as :attr:`Row.key`."""
        return {row.backend: row for row in self.rows if row.key == key}


def checksum(content: Mapping[str, Any]) -> str:
    """Of a record's content but its checksum: against accidents, not against malice."""
    text = json.dumps(
        {name: content[name] for name in content if name != "checksum"}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse(text: str, source: str) -> Record:
    """A record from JSON text.

    Args:
        source: what to call it in an error, such as its path.

    Raises:
        ArgumentError: one sentence: no JSON, another schema, a key that is missing, unknown or of
            another type, a value outside of its list, a row twice, a checksum that does not fit.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(
            f"{source} is no JSON ({error}); `xlnet-fast qualify` renews it"
        ) from None
    try:
        return _record(data)
    except _Damaged as error:
        raise ArgumentError(f"{source} {error}; `xlnet-fast qualify` renews it") from None


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        ArgumentError: as :func:`parse`, or the file cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise ArgumentError(f"{path} cannot be read (it is no regular file)")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read ({error})") from None
    return parse(text, str(path))


def write(record: Record, path: Path) -> None:
    """Write a record, then rename: nobody ever reads half of one, and an older one stays till then.

    Raises:
        ArgumentError: the folder cannot be made or written to; the path is a folder.
    """
    try:
        files.write_whole(path, record.to_json())
    except OSError as error:
        raise ArgumentError(
            f"{path} cannot be written ({error}); --out FILE writes elsewhere"
        ) from None


# ---- reading a record that somebody may have edited ----


class _Damaged(Exception):
    """What is wrong with a record, to follow its name."""


def _record(data: object) -> Record:
    content = _mapping(data, "the whole")
    schema = content.pop("schema", None)
    if schema != SCHEMA:
        raise _Damaged(f"has schema {schema!r}, and this version reads {SCHEMA}")
    identity = Identity(
        **_checked(Identity, _mapping(content.get("identity"), "identity"), "identity")
    )
    if identity.device not in ("cuda", "cpu"):
        raise _Damaged(f"has device {identity.device!r} in identity, expected cuda or cpu")
    rows = tuple(_row(row, number) for number, row in enumerate(_list(content.get("rows"), "rows")))
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(rows):
        if (key := (*row.key, row.backend)) in seen:
            raise _Damaged(f"has row {number} twice")
        seen.add(key)
    found = content.pop("checksum", None)
    parts = {"identity": identity, "rows": rows, "tiles": _tiles(content.get("tiles"))}
    whole = _checked(Record, content | parts, "the whole")
    if found != checksum({"schema": schema, **content}):
        raise _Damaged("was edited: its checksum does not fit")
    return Record(**whole)


def _row(data: object, number: int) -> Row:
    where = f"row {number}"
    content = _mapping(data, where)
    timings = tuple(
        Timing(**_checked(Timing, _mapping(timing, f"a timing of {where}"), f"a timing of {where}"))
        for timing in _list(content.get("timings"), f"the timings of {where}")
    )
    times = [t for timing in timings for t in (timing.time_us, timing.baseline_us, timing.hf_us)]
    if any(time is not None and not 0 < time < _LONGEST_US for time in times):
        raise _Damaged(f"has a time in {where} that is not positive, or is longer than a day")
    row = Row(**_checked(Row, content | {"timings": timings}, where))
    for name, value, known in (
        ("op", row.op, CLASSES), ("operands", row.operands, CLASSES.get(row.op, {})),
        ("direction", row.direction, DIRECTIONS), ("status", row.status, STATUSES),
    ):  # fmt: skip
        if value not in known:
            raise _Damaged(f"has {name} {value!r} in {where}, expected one of: {', '.join(known)}")
    if row.status == PASSED and not _within(row):
        raise _Damaged(f"calls {where} passed, with error {row.error} and bound {row.bound}")
    return row


def _tiles(data: object) -> dict[str, tuple[int, ...]]:
    tiles = {}
    for name, tile in _mapping(data, "tiles").items():
        numbers = _list(tile, f"the tile {name!r}")
        if len(numbers) != TILE_FIELDS or any(type(n) is not int or n < 0 for n in numbers):
            raise _Damaged(f"has the tile {name!r} of {numbers}, expected {TILE_FIELDS} integers")
        tiles[name] = tuple(numbers)
    return tiles


def _within(row: Row) -> bool:
    return row.error is not None and row.bound is not None and 0 <= row.error <= row.bound


_LONGEST_US = 86400e6

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "Identity": (Identity,),
    "tuple[Row, ...]": (tuple,),
    "tuple[Timing, ...]": (tuple,),
    "Mapping[str, tuple[int, ...]]": (dict,),
}


def _checked(kind: type, content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The content, which has the fields of a dataclass, each of its type and none else."""
    types = {field.name: str(field.type) for field in fields(kind)}
    for name in {*types, *content}:
        if name not in content:
            raise _Damaged(f"lacks {name!r} in {where}")
        if name not in types:
            raise _Damaged(f"has an unknown {name!r} in {where}")
        value, allowed = content[name], _TYPES[types[name]]
        wrong = not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise _Damaged(f"has {name} {value!r} in {where}, expected {types[name]}")
    return dict(content)


def _mapping(data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _Damaged(f"has {type(data).__name__} for {where}, expected an object")
    return dict(data)


def _list(data: object, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise _Damaged(f"has {type(data).__name__} for {where}, expected a list")
    return data


def _mean(values: Iterable[float]) -> float | None:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None
