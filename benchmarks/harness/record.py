"""What a run leaves behind: a long-format CSV, written row by row, and the environment."""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

import torch

from xlnet_fast.files import write_whole

CSV_FILE = "results.csv"
ENVIRONMENT_FILE = "environment.json"
# ok: timed after a green check. red: the check failed, so nothing was timed. unavailable: cannot
# run here. failed: raised. not_run: left out by the preset or for want of time. `reason` says more.
STATUSES = ("ok", "red", "unavailable", "failed", "not_run")


@dataclass
class Row:
    """One provider on one case; an empty cell means not measured.

    Times are per call. Those of generated text are per token of a text: the mean of a whole text,
    whose `length` is that of the prompt, or those of single steps at the context `length`.
    """

    kernel: str
    provider: str
    # forward | backward | forward_backward | training_step | copy | matmul | text | step
    pass_name: str
    dtype: str
    batch: int
    length: int
    memory_length: int
    heads: int
    head_dim: int
    layers: int
    features: str
    status: str
    reason: str = ""
    rounds: int = 0
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    speedup_over_hf_eager: float | None = None
    speedup_over_hf_compile: float | None = None
    time_over_floor: float | None = None  # median over the rounds; the floor leaves out work
    tflop_per_s: float | None = None
    bandwidth_gb_s: float | None = None  # necessary bytes per second, 1 GB = 1e9 bytes
    peak_memory_mib: float | None = None
    error: float | None = None
    error_hf_eager: float | None = None
    device: str = ""
    threads: int = 0
    torch: str = ""
    triton: str = ""
    transformers: str = ""
    xlnet_fast: str = ""
    commit: str = ""
    dirty: str = ""
    preset: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")
        ratios = (self.speedup_over_hf_eager, self.speedup_over_hf_compile, self.time_over_floor)
        if self.status != "ok" and any(ratio is not None for ratio in ratios):
            raise ValueError(f"a row with status {self.status} cannot carry a speed-up")

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of the batch per second, those of the memory left out; None if not timed."""
        if self.pass_name in ("text", "step"):
            return self.batch / self.p50_us * 1e6 if self.p50_us else None
        return self.batch * self.length / self.p50_us * 1e6 if self.p50_us else None

    @property
    def case_key(self) -> tuple[Any, ...]:
        """What two rows share that were measured in the same rounds."""
        return (
            self.kernel, self.pass_name, self.dtype, self.batch, self.length, self.memory_length,
            self.heads, self.head_dim, self.layers, self.features, self.device, self.preset,
        )  # fmt: skip


COLUMNS = tuple("pass" if f.name == "pass_name" else f.name for f in fields(Row))


class ResultsWriter:
    """Appends rows to a CSV, each complete on disk before the next is measured."""

    def __init__(
        self, path: Path, environment: Mapping[str, Any], preset: str, *, append: bool = False
    ) -> None:
        """Begin a file, or go on with one that an earlier part of the same run began.

        earlier: the rows that are there.
        """
        self.rows: list[Row] = []
        self.earlier: list[Row] = []
        self._stamp = {
            "device": environment["device"],
            "threads": environment["threads"],
            "torch": environment["versions"].get("torch", ""),
            "triton": environment["versions"].get("triton", ""),
            "transformers": environment["versions"].get("transformers", ""),
            "xlnet_fast": environment["versions"].get("xlnet_fast", ""),
            "commit": environment["commit"],
            "dirty": str(environment["dirty"]).lower(),
            "preset": preset,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        if append and path.exists():
            self.earlier = read_results(
                path
            )  # raises for a file that rows of this version do not fit
        else:
            # An earlier file is replaced whole, so a reader never sees two runs in one.
            write_whole(path, ",".join(COLUMNS) + "\n")
        self._file: TextIO = path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file, lineterminator="\n")

    def add(self, row: Row) -> Row:
        """Stamp a row with the environment and write it.

        A library's version that a row brings along stays: it was measured in another environment.
        """
        for name, value in self._stamp.items():
            if name not in ("torch", "transformers") or not getattr(row, name):
                setattr(row, name, value)
        self._csv.writerow([_cell(value) for value in asdict(row).values()])
        self._file.flush()
        self.rows.append(row)
        return row

    def close(self) -> None:
        """Close the file; rows stay readable in `rows`."""
        self._file.close()

    def __enter__(self) -> ResultsWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_results(path: Path) -> list[Row]:
    """Read a CSV written by `ResultsWriter`.

    Raises ValueError when a column is missing or unknown, or a row is cut short.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != COLUMNS:
            odd = sorted(set(header) ^ set(COLUMNS)) or "their order"
            raise ValueError(f"{path.name} is not a results file of this version: columns {odd}")
        rows = []
        for number, cells in enumerate(reader, start=2):
            if len(cells) != len(COLUMNS):
                raise ValueError(
                    f"{path.name} line {number} has {len(cells)} of {len(COLUMNS)} cells"
                )
            values = zip(fields(Row), cells, strict=True)
            rows.append(Row(**{field.name: _parse(field.type, cell) for field, cell in values}))
    return rows


def _parse(kind: Any, cell: str) -> Any:
    if kind == "str":
        return cell
    if kind == "int":
        return int(cell)
    return float(cell) if cell else None


def environment(
    device: torch.device | str, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe the machine and the software, without names of hosts, users or folders."""
    device = torch.device(device)
    commit, dirty = _git_state()
    names = ("torch", "triton", "transformers", "tokenizers", "sentencepiece", "numpy")
    info: dict[str, Any] = {
        "device": device_name(device),
        "device_type": device.type,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "isa": _isa(),
        "memory_gib": _memory_gib(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"xlnet_fast": _own_version()} | {name: _version(name) for name in names},
        "cuda": torch.version.cuda,
        "commit": commit,
        "dirty": dirty,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        info["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
        }
    return info | dict(extra or {})


def device_name(device: torch.device | str) -> str:
    """Return the model of a GPU or CPU, as it labels results."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _isa() -> list[str]:
    wanted = (
        "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
        "amx_bf16", "amx_int8", "asimd", "sve", "bf16", "i8mm",
    )  # fmt: skip
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                present = set(line.split(":", 1)[1].split())
                return [name for name in wanted if name in present]
    return []


def _memory_gib() -> float | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return None


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _own_version() -> str:
    # From the source tree first: a checkout on a GPU machine is run without being installed.
    try:
        from xlnet_fast._version import __version__
    except ImportError:
        return _version("xlnet-fast")
    return str(__version__)


def _git_state() -> tuple[str, bool | None]:
    """Return the commit and whether tracked files differ from it, or ("unknown", None)."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown", None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD"), bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return "unknown", None


def write_environment(folder: Path, info: Mapping[str, Any]) -> Path:
    """Write `environment.json` and return where."""
    path = folder / ENVIRONMENT_FILE
    write_whole(path, json.dumps(info, indent=2, sort_keys=True) + "\n")
    return path


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what `write_environment` left in a folder, {} where there is none.

    Raises ValueError when the file is there and is no such record.
    """
    try:
        info = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(info, dict):
        raise ValueError(f"{ENVIRONMENT_FILE} holds no record of an environment")
    return info


def merged_environment(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a run that goes on with an earlier one's results.

    What this part knows nothing of (no model and no text, where it ran no model) stays as the
    earlier part recorded it, and both presets are named. Another device's record is not mixed in.
    """
    merged = dict(now)
    if earlier.get("device") != now.get("device"):
        return merged
    for key, value in earlier.items():
        if merged.get(key, "none") == "none":
            merged[key] = value
    presets = [
        name for info in (earlier, now) for name in str(info.get("preset") or "").split(", ")
    ]
    merged["preset"] = ", ".join(dict.fromkeys(name for name in presets if name))
    return merged


def cases(rows: Iterable[Row]) -> list[list[Row]]:
    """Group rows by case, in the order in which the cases first appear."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.case_key, []).append(row)
    return list(groups.values())
