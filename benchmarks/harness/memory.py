"""Peak memory of one run.

On CUDA: the allocator's own peak (`torch.cuda.max_memory_allocated`) above the level before.
On the CPU: what the operating system saw. A fresh child process builds the inputs, runs once to
settle thread pools and caches, hands free memory back, resets its high-water mark
(`/proc/self/clear_refs`), runs once more, and reports VmHWM minus the resident size before. That
counts scratch memory of libraries and of our own C++ too, which PyTorch's profiler does not see.
The child's malloc returns every block from 64 KiB up at once, so memory kept for reuse does not
hide a peak. Where the system offers no such file, memory is reported as not measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_ANSWER = "peak-memory-answer "
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
# The environment of a process whose malloc keeps nothing for reuse.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def cuda_peak_mib(function: Callable[[], Any], device: torch.device) -> float:
    """Return the peak of CUDA memory allocated by one call, result included, in MiB."""
    function()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def host_peak_mib(function: Callable[[], Any]) -> float | None:
    """Return the peak of resident memory above the level before one call, in MiB.

    Trustworthy only in the child process described above. None where the high-water mark of this
    system cannot be reset.
    """
    function()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR_REFS.write_text("5")
        before = _status_kib("VmRSS")
        result = function()
        peak = _status_kib("VmHWM")
    except OSError:
        return None
    del result
    return max(peak - before, 0) / 1024


def process_peak_mib(process_id: int, function: Callable[[], Any]) -> float | None:
    """Return the peak of another process's memory while `function` lets it do something, in MiB.

    It must have done the same before, and give memory back at once, as `RETURNING` makes it. None
    where the high-water mark of this system cannot be reset.
    """
    folder = Path("/proc") / str(process_id)
    try:
        (folder / _CLEAR_REFS.name).write_text("5")
        before = _status_kib("VmRSS", folder / _STATUS.name)
        function()
        peak = _status_kib("VmHWM", folder / _STATUS.name)
    except OSError:
        return None
    return max(peak - before, 0) / 1024


def _status_kib(name: str, path: Path = _STATUS) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise OSError(f"{path} has no {name}")


def free_bytes(device: torch.device) -> float | None:
    """Return the memory that a device has to give now; None where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return None


class MemoryWorker:
    """A child process that measures the peak memory of one provider after the other."""

    def __init__(self, timeout_s: float = 600.0) -> None:
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def peak_mib(self, module: str, request: dict[str, Any]) -> float | None:
        """Return the peak in MiB, None when it could not be measured (no such file, child killed).

        Raises RuntimeError with the child's reason when the work itself raised there.
        module: whose `memory_request(request)` returns the function to run, by its full name.
        """
        process = self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"module": module, "request": request}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self.close()
            return None
        answer = self._read_answer(process)
        if answer is None:
            self.close()  # killed for want of memory, or past its time: the next gets a fresh one
            return None
        if "error" in answer:
            raise RuntimeError(answer["error"])
        value = answer.get("peak_mib")
        return None if value is None else float(value)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            settings = {
                **RETURNING,
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                "CUDA_VISIBLE_DEVICES": "",
                "OMP_NUM_THREADS": str(torch.get_num_threads()),
            }
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.memory"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,  # a selector cannot see lines that a buffer already holds
                env=os.environ | settings,
            )
        return self._process

    def _read_answer(self, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while selector.select(self._timeout_s):
                line = process.stdout.readline().decode(errors="replace")
                if not line:
                    return None
                if line.startswith(_ANSWER):
                    answer: dict[str, Any] = json.loads(line.removeprefix(_ANSWER))
                    return answer
        return None

    def close(self) -> None:
        """End the child process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> MemoryWorker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _serve() -> None:
    """Answer requests, one JSON object a line, until the parent closes the pipe."""
    import importlib

    for line in sys.stdin:
        message = json.loads(line)
        answer: dict[str, Any] = {"peak_mib": None}
        try:
            module = importlib.import_module(message["module"])
            function = module.memory_request(message["request"])
            answer["peak_mib"] = host_peak_mib(function)
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        function = None
        gc.collect()
        print(_ANSWER + json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
