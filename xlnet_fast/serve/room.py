"""Whether there is memory for another model."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from xlnet_fast.serve.contract import NoRoom
from xlnet_fast.serve.versions import safetensors_bytes

SHARE = 1.25
"""Of the weights' bytes: what loading and computing take besides."""
FIXED_BYTES = 64 << 20
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def check_room(folder: Path, device: torch.device) -> None:
    """Compare what a checkpoint takes with what is free, on the host and on the model's device.

    Weights are read in fp32 on the host, whatever they become.

    Raises:
        NoRoom: there is too little.
    """
    wanted = int(fp32_bytes(folder) * SHARE) + FIXED_BYTES
    places = {"memory": available_bytes()}
    if device.type == "cuda":
        places["GPU memory"] = torch.cuda.mem_get_info(device)[0]
    for place, free in places.items():
        if free is not None and wanted > free:
            raise NoRoom(
                f"the model takes about {wanted >> 20} MiB of {place}, and {free >> 20} MiB are "
                "free: unload another first"
            )


def fp32_bytes(folder: Path) -> int:
    """What a checkpoint's weights take in fp32, at most: half-precision files are half as long."""
    files = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    total = 0
    for path in files:
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            size = max(size, safetensors_bytes(path))
            with path.open("rb") as file:
                header = file.read(1 << 16)
            if b'"BF16"' in header or b'"F16"' in header:
                size *= 2
        total += size
    return total


def available_bytes() -> int | None:
    """The memory that this process can still take, None where the system does not tell."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) << 10)
    except OSError:
        return None if os.name != "posix" else _physical()
    for limit, usage in _CGROUPS:
        try:
            most = Path(limit).read_text(encoding="ascii").strip()
            if most != "max":
                used = int(Path(usage).read_text(encoding="ascii"))
                found.append(max(0, int(most) - used + _file_cache(Path(usage).parent)))
        except (OSError, ValueError):
            continue
    return min(found, default=None)


def _file_cache(cgroup: Path) -> int:
    """Bytes that a group has only as copies of files, and gives up when asked."""
    for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _physical() -> int | None:
    """Free pages, where there is no /proc."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
