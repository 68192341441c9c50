"""Hugging Face's XLNet and ours on a TPU: times side by side, and errors.

    python -m benchmarks.micro.tpu_speed [--shape 8x512 8x2048] [--layers 12] [--dtype bf16]
        [--training] [--provider hf reference pallas] [--rounds 20] [--out FILE]

The models of `micro.tpu_compile`, exported, lowered by torchax and compiled for the TPU that JAX
runs on. A round runs each of them once, in an order that rotates, from the call until the result is
there; `times as fast` is the median of the ratios to Hugging Face within a round. The error is that
of the last row, which has padding, from Hugging Face's float32 model on the host, over its largest
value; of a gradient none is told. `--out` writes the rows, each as it comes.

`--cpu` tries the command without a TPU, kernels interpreted, by default with one layer at 2x64 and
two rounds: its times say nothing of a TPU.

Needs JAX, libtpu and torchax: `pip install xlnet-fast[tpu]`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from xlnet_fast.errors import BackendUnavailable, XLNetFastError

from ..cases.model import random_model
from ..cases.shapes import BASE
from ..harness.timing import CpuTimer, Plan, measure, paired_ratio
from .tpu_compile import Case, Record, add_options, cases_of, export_case, pass_of

_ROUNDS = 20
_TRIED = "tried on a CPU with interpreted kernels: no time of a TPU"


def find_device(on_cpu: bool) -> Any:
    """The TPU that JAX runs on, or a CPU.

    Raises:
        BackendUnavailable: there is no TPU, or no JAX.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if on_cpu else "tpu,cpu")
    try:
        import jax

        device = jax.devices("cpu" if on_cpu else None)[0]
    except (ImportError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, ImportError):
            raise BackendUnavailable(f"{reason}: pip install 'xlnet-fast[tpu]'") from error
        raise BackendUnavailable(
            f"JAX finds no TPU here ({reason}); `--cpu` tries the command without one"
        ) from error
    if not on_cpu and device.platform != "tpu":
        raise BackendUnavailable(
            f"JAX runs on {device.platform}, not on a TPU; `--cpu` tries the command without one"
        )
    return device


def on_device(provider: str, case: Case, device: Any) -> Callable[[], Any]:
    """A provider's pass, weights and inputs on the device; a call waits for the result."""
    import jax
    from torchax.ops.mappings import t2j

    if provider == "pallas":
        from xlnet_fast import tpu

        tpu.register(interpret=device.platform != "tpu")
    function, arguments = pass_of(export_case(provider, case), case.training)
    put = [jax.tree.map(lambda x: jax.device_put(t2j(x), device), given) for given in arguments]
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*put))


@torch.no_grad()
def exact_row(case: Case) -> Tensor:
    """Hugging Face's output (1, length, 768) of the last row, in float32 on the host."""
    model = random_model(replace(BASE, n_layer=case.layers)).eval()
    inputs = {name: x[-1:] for name, x in case.inputs().items()}
    return model(**inputs, use_mems=False)[0]


def error_of(result: Any, exact: Tensor) -> float:
    """The largest difference of the last row, where it has tokens, over the largest value."""
    import jax.numpy as jnp
    import numpy as np

    row = torch.from_numpy(np.array(result[-1:].astype(jnp.float32)))
    shown = slice(exact.shape[1] // 4, None)  # of `make_inputs`
    return float((row - exact)[:, shown].abs().max() / exact.abs().max())


def time_case(
    case: Case, providers: Sequence[str], device: Any, rounds: int
) -> list[dict[str, Any]]:
    """A row for each provider.

    Raises:
        XLNetFastError: one of them fails.
    """
    passes = {name: on_device(name, case, device) for name in providers}
    errors: dict[str, float | None] = dict.fromkeys(providers)
    if not case.training:
        exact = exact_row(case)
        errors |= {name: error_of(run(), exact) for name, run in passes.items()}
    plan = Plan(min_rounds=rounds, max_rounds=rounds)
    times = measure(passes, CpuTimer(), plan)
    for name, found in times.items():
        if found.failure is not None:
            raise XLNetFastError(f"{name} at {case.batch}x{case.length}: {found.failure}")
    base = times.get("hf")
    return [
        {
            "provider": name,
            "chip": device.device_kind,
            **asdict(case),
            "time_us": found.percentile_us(50),
            "time_p20_us": found.percentile_us(20),
            "time_p80_us": found.percentile_us(80),
            "rounds": len(found.samples_us),
            "times_as_fast": None if base is None else paired_ratio(base, found),
            "error": errors[name],
        }
        for name, found in times.items()
    ]


def table_of(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The rows, a line each."""
    table = Table(title=title, box=None, pad_edge=False)
    for heading in ("case", "provider"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms", "times as fast", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        ratio, error = row["times_as_fast"], row["error"]
        table.add_row(
            Case(*(row[name] for name in Case.__dataclass_fields__)).label,
            row["provider"],
            f"{row['time_us'] / 1e3:.2f}",
            "-" if ratio is None else f"{ratio:.2f}",
            "-" if error is None else f"{error:.1e}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write, print."""
    parser = argparse.ArgumentParser(
        prog="tpu_speed", description=(__doc__ or "").partition("\n")[0]
    )
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="how often each is timed")
    parser.add_argument("--cpu", action="store_true", help="try the command without a TPU")
    parser.add_argument("--out", type=Path, help="JSON file that the rows are added to")
    asked = parser.parse_args(arguments)
    if asked.cpu:
        parser.set_defaults(shape=[(2, 64)], layers=1, rounds=2)
        asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        parser.error(f"--rounds is {asked.rounds}, expected at least 1")
    rows: list[dict[str, Any]] = []
    try:
        device = find_device(asked.cpu)
        note = _TRIED if asked.cpu else f"measured on {device.device_kind}"
        record = Record(asked.out, note)
        for case in cases_of(asked):
            for row in time_case(case, asked.provider, device, asked.rounds):
                record.add(row)
                rows.append(row)
            print(f"{case.label}: timed", flush=True)
    except XLNetFastError as error:
        parser.error(str(error))
    Console(width=120).print(table_of(rows, note))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
