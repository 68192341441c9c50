"""Hugging Face's XLNet and ours under the TPU compiler, on a machine without a TPU.

    python -m benchmarks.micro.tpu_compile [--chip v5e v6e] [--shape 8x512 8x2048] [--layers 12]
        [--provider hf reference pallas] [--training] [--out FILE]

A model with random weights is exported by `torch.export`, lowered by torchax and compiled for each
chip: temporary memory, bytes of main memory that all operations access, FLOPs, and gathers in the
lowered program. These are the compiler's figures; nothing is run, so nothing here is a time.
Inputs have padding and segments. `--out` adds the rows to a file, each as it comes.

Hugging Face's one-hot segments become assertions on their ids, which torchax cannot lower. They
compute nothing of the result and are taken out of the exported graph; all else stays.

Needs JAX, libtpu and torchax: `pip install xlnet-fast[tpu]`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import xlnet_fast
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.files import write_whole
from xlnet_fast.kernels.report import tpu

from ..cases.model import random_model
from ..cases.rel_attention import DTYPES
from ..cases.shapes import BASE
from ..harness.record import environment

PROVIDERS = ("hf", "reference", "pallas")
"""In the order of compilation: what is registered for "pallas" stays registered."""
NOTE = "the TPU compiler's figures; nothing ran on a TPU"
_PACKAGES = ("jax", "libtpu", "torchax", "torch", "transformers")


@dataclass(frozen=True)
class Case:
    """What is compiled, whoever's model it is."""

    layers: int
    dtype: str
    batch: int
    length: int
    training: bool  # whether it is the gradient of all weights that is compiled


class Compiled(NamedTuple):
    """What the compiler says of a model, and what it was given."""

    figures: tpu.Figures
    gathers: int  # in the lowered program, an embedding's among them


class _FirstOutput(nn.Module):
    """A model as a function of tensors by position, whose result is its first output."""

    def __init__(self, model: nn.Module, names: Sequence[str], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.options = model, tuple(names), dict(options)

    def forward(self, *values: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, values, strict=True)), **self.options)[0]


class Exported(NamedTuple):
    """A model as torchax has it: a function of JAX, lowered for any chip."""

    function: Callable[[Any, Any], Any]  # of the state and the inputs, to a list of outputs
    state: list[Tensor]  # weights and buffers, of which only shapes and dtypes count
    inputs: list[Tensor]  # likewise


def export(model: nn.Module, inputs: Mapping[str, Tensor], **options: Any) -> Exported:
    """Export a model, without the assertions that compute nothing of its result.

    Args:
        inputs: keyword arguments of the model that are tensors.
        options: those that are not, such as `use_mems=False`.

    Raises:
        BackendUnavailable: JAX or libtpu is missing.
    """
    tpu.require_compiler()
    import torchax
    from torchax.export import exported_program_to_jax

    torchax.default_env()  # whose first call registers the lowerings
    wrapped = _FirstOutput(model, list(inputs), options)
    program = torch.export.export(wrapped, tuple(inputs.values()), strict=False)
    program = program.run_decompositions()
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_async.msg:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    _, state, function = exported_program_to_jax(program, export_raw=True)
    return Exported(function, state, list(inputs.values()))


def compile_exported(exported: Exported, chip: str, training: bool = False) -> Compiled:
    """Lower and compile a model for a chip; `xlnet_fast.tpu.register` must know that chip, too.

    Args:
        chip: of `tpu.TOPOLOGIES`.
        training: compile the gradient of the sum of the first output with respect to the weights.

    Raises:
        ArgumentError: an unknown chip.
    """
    where = tpu.sharding(chip)
    import jax
    import jax.numpy as jnp
    from torchax.ops.mappings import t2j_dtype

    def shape(x: Tensor) -> Any:
        dtype = jax.dtypes.canonicalize_dtype(t2j_dtype(x.dtype))
        return jax.ShapeDtypeStruct(tuple(x.shape), dtype, sharding=where)

    def run(state: Any, inputs: Any) -> Any:
        return exported.function(state, inputs)

    def loss(weights: Any, buffers: Any, inputs: Any) -> Any:
        state = [weights[i] if i in weights else buffers[i] for i in range(len(exported.state))]
        return jnp.sum(exported.function(state, inputs)[0].astype(jnp.float32))

    inputs = tuple(map(shape, exported.inputs))
    if training:
        state = list(enumerate(exported.state))
        weights = {i: shape(x) for i, x in state if x.is_floating_point()}
        buffers = {i: shape(x) for i, x in state if not x.is_floating_point()}
        lowered = jax.jit(jax.grad(loss)).lower(weights, buffers, inputs)
    else:
        lowered = jax.jit(run).lower(list(map(shape, exported.state)), inputs)
    gathers = len(re.findall(r'"stablehlo\.(?:dynamic_)?gather"\(', lowered.as_text()))
    return Compiled(tpu.compile_lowered(lowered), gathers)


def compile_model(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    chip: str,
    *,
    training: bool = False,
    **options: Any,
) -> Compiled:
    """`export` and `compile_exported` of a model of Hugging Face, plain or accelerated."""
    return compile_exported(export(model, inputs, **options), chip, training)


def make_inputs(batch: int, length: int) -> dict[str, Tensor]:
    """Token ids, a mask with padding, and two segments."""
    mask = torch.ones(batch, length)
    mask[-1, : length // 4] = 0
    segments = (torch.arange(length) > length // 2).long().expand(batch, length)
    ids = torch.arange(batch * length).view(batch, length) % 1000 + 10
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments.contiguous()}


@lru_cache(maxsize=1)
def export_case(provider: str, case: Case) -> Exported:
    """A provider's model, exported once for all chips."""
    model = random_model(replace(BASE, n_layer=case.layers)).to(DTYPES[case.dtype]).eval()
    if provider != "hf":
        xlnet_fast.accelerate(model, backend="reference" if provider == "reference" else "auto")
    return export(model, make_inputs(case.batch, case.length), use_mems=False)


def compile_case(provider: str, chip: str, case: Case) -> dict[str, Any]:
    """A row of the report.

    Raises:
        ArgumentError: kernels where none should be, or none where they should.
    """
    if provider == "pallas":
        from xlnet_fast import tpu as lowering

        lowering.register(chip=chip)
    figures, gathers = compile_exported(export_case(provider, case), chip, case.training)
    if bool(figures.kernels) != (provider == "pallas"):
        raise ArgumentError(f"{provider}: {len(figures.kernels)} Pallas kernels in its program")
    return {
        "provider": provider,
        "chip": chip,
        **asdict(case),
        "temporary_bytes": figures.temporary_bytes,
        "accessed_bytes": figures.accessed_bytes,
        "flops": figures.flops,
        "gathers": gathers,
        "kernels": len(figures.kernels),
        "vmem_bytes": max((kernel.vmem_bytes for kernel in figures.kernels), default=None),
        "compile_seconds": figures.compile_seconds,
    }


class Record:
    """The rows, and a file that has them as they come."""

    def __init__(self, path: Path | None) -> None:
        """Go on with the rows of a file that is there.

        Raises:
            ArgumentError: its rows are of other versions, or there is no such folder.
        """
        self.path = path
        self.versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        self.rows: list[dict[str, Any]] = []
        if path is None:
            return
        if not path.resolve().parent.is_dir():
            raise ArgumentError(f"no folder {path.parent} to write {path.name} to")
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["versions"] != self.versions:
                raise ArgumentError(f"{path} has rows of {found['versions']}: name another file")
            self.rows = found["rows"]

    def add(self, row: dict[str, Any]) -> None:
        """A row in place of the one of the same case, if there is one."""
        state = environment("cpu")
        key = _key(row)
        row |= {
            "date": datetime.date.today().isoformat(),
            "commit": state["commit"],
            "dirty": state["dirty"],
        }
        self.rows = [other for other in self.rows if _key(other) != key] + [row]
        self.rows.sort(key=_key)
        if self.path is not None:
            content = {"note": NOTE, "versions": self.versions, "rows": self.rows}
            write_whole(self.path, json.dumps(content, indent=1) + "\n")


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    case = tuple(row[name] for name in Case.__dataclass_fields__)
    return *case, list(tpu.TOPOLOGIES).index(row["chip"]), PROVIDERS.index(row["provider"])


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows, a line each."""
    table = Table(title=NOTE, box=None, pad_edge=False)
    words = ("case", "chip", "provider")
    figures = ("temporary MiB", "accessed GB", "TFLOP", "gathers", "kernels", "compile s")
    for heading in (*words, *figures):
        table.add_column(heading, justify="left" if heading in words else "right", no_wrap=True)
    for row in rows:
        what = "training" if row["training"] else "forward"
        table.add_row(
            f"{row['batch']}x{row['length']} {row['dtype']}, {row['layers']} layers, {what}",
            row["chip"], row["provider"], f"{row['temporary_bytes'] / 2**20:,.0f}",
            f"{row['accessed_bytes'] / 1e9:,.1f}", f"{row['flops'] / 1e12:,.2f}",
            str(row["gathers"]), str(row["kernels"]), f"{row['compile_seconds']:.0f}",
        )  # fmt: skip
    return table


def _shape(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxLENGTH, such as 8x512")
    return int(found[1]), int(found[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, write, print."""
    parser = argparse.ArgumentParser(
        prog="tpu_compile", description=(__doc__ or "").partition("\n")[0]
    )
    chips = list(tpu.TOPOLOGIES)
    parser.add_argument("--chip", nargs="+", choices=chips, default=chips)
    parser.add_argument("--shape", nargs="+", type=_shape, default=[(8, 512), (8, 2048)])
    parser.add_argument("--layers", type=_positive, default=BASE.n_layer)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--provider", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--training", action="store_true", help="the gradient of all weights")
    parser.add_argument("--out", type=Path, help="JSON file that the rows are added to")
    asked = parser.parse_args(arguments)
    compiled = []
    try:
        tpu.require_compiler()
        record = Record(asked.out)
        for provider in sorted(asked.provider, key=PROVIDERS.index):
            for batch, length in asked.shape:
                case = Case(asked.layers, asked.dtype, batch, length, asked.training)
                for chip in asked.chip:
                    row = compile_case(provider, chip, case)
                    compiled.append(row)
                    record.add(row)
                    print(f"{provider} {batch}x{length} {chip}: compiled", flush=True)
    except XLNetFastError as error:
        parser.error(str(error))
    Console(width=120).print(table_of(compiled))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
