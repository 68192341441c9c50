"""One whole pretraining step: two streams, memory and targets, ours against HF eager and compiled.

Run it alone: python -m benchmarks bench_pretraining --preset full --out DIR
A step is the forward of `XLNetLMHeadModel`, the loss of the targets and the backward, with dropout
as configured and without an optimizer; its check runs without dropout. Ours gets the targets and
the permutation in the compact form, Hugging Face's model in the dense one, as `PretrainingTrainer`
hands them out; half precision is autocast, as Trainer runs it. On a GPU the preset's first dtype is
run alone. TFLOP/s count the necessary operations: see `PretrainingCase.flops`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .cases.model import Source, in_dtype, load_source, share
from .cases.pretraining import (
    PretrainingCase,
    PretrainingInputs,
    double,
    make_inputs,
    mean_loss,
    parts,
    precision,
    result_names,
    results,
    set_memory,
    target_losses,
)
from .cases.rel_attention import DTYPES
from .cases.shapes import TRAINING_STEP, Geometry, PretrainingShape
from .harness.record import Row
from .harness.runner import Candidate, run_case
from .harness.session import Session
from .providers.model import backend_of, provider_names
from .providers.work import Tensors, Work

KERNEL = "pretraining"
ARCHITECTURE = "XLNetLMHeadModel"


def providers(device: torch.device) -> tuple[str, ...]:
    """Return the names of all providers; what takes minutes to compile comes last."""
    eager = [
        name
        for name in provider_names(device)
        if name != "gemm_floor" and not name.endswith("_compile")
    ]
    return (*eager, "hf_compile", "ours_compile")


def dtypes(session: Session) -> tuple[str, ...]:
    """Return the dtypes that are run: on a GPU the first of the preset alone."""
    return session.preset.dtypes[: 1 if session.preset.large_ops else None]


def shapes(session: Session, model: str | None) -> list[PretrainingShape]:
    """Return the preset's shapes; each once for the user's model, whose size is its own."""
    given = session.preset.pretraining_shapes
    if model is None:
        return list(given)
    return list({replace(shape, geometry=given[0].geometry): shape for shape in given}.values())


def steps(session: Session, model: str | None = None) -> int:
    """Return how many cases `run` will advance by."""
    return len(shapes(session, model)) * len(dtypes(session))


def load(geometry: Geometry, model: str | None = None, text: str | None = None) -> Source:
    """Make the random language model of a geometry, or load the user's; tokenise the text.

    Raises `ArgumentError` for a model or text that cannot be used.
    """
    return load_source(geometry, model, text, ARCHITECTURE)


def run(
    session: Session,
    model: str | None = None,
    text: str | None = None,
    source: Source | None = None,
) -> list[Row]:
    """Run every case of the preset and return the rows.

    model, text: the user's, or None. source: what they or the first geometry give, if loaded.
    """
    rows: list[Row] = []
    for shape in shapes(session, model):
        if source is None or (model is None and source.geometry != shape.geometry):
            session.context.step(f"making {shape.geometry.name}")
            source = load(shape.geometry, model, text)
        batch = Batch(source, shape, session.device)
        for dtype in dtypes(session):
            rows += bench_case(session, batch, replace(batch.case, dtype=dtype))
            session.advance()
    return rows


class Batch:
    """A shape with its model, and what all its dtypes share, each made when it is first needed."""

    def __init__(self, source: Source, shape: PretrainingShape, device: torch.device) -> None:
        self.source, self.device = source, device
        self.case = PretrainingCase(
            shape.batch, shape.length, shape.reuse_len, shape.targets, shape.memory
        )
        set_memory(source.model, self.case)

    @cached_property
    def model(self) -> nn.Module:
        """Hugging Face's model in fp32, on the device."""
        return in_dtype(self.source.model, torch.float32, self.device)

    @cached_property
    def inputs(self) -> PretrainingInputs:
        """The arguments of the step, on the device."""
        return make_inputs(self.model, self.source.corpus, self.case, self.device)

    @cached_property
    def exact(self) -> Tensors:
        """The float64 result."""
        return self.by_parts(torch.float64)

    def by_parts(self, dtype: torch.dtype) -> Tensors:
        """Return the result of Hugging Face's model, some rows of the batch after the other."""
        wide = dtype == torch.float64
        model = double(self.source.model, self.device) if wide else self.model
        return results(model, self.inputs, dtype, dense=True, rows=parts(self.case))


def bench_case(session: Session, batch: Batch, case: PretrainingCase) -> list[Row]:
    """Check, time and record one case."""
    torch._dynamo.reset()
    geometry = batch.source.geometry
    model: Any = batch.source.model
    dropout = model.config.dropout
    features = f"{case.targets} targets+permutation+segments+bi_data+dropout {dropout:g}"
    columns = {
        "kernel": KERNEL,
        "pass_name": TRAINING_STEP,
        "dtype": case.dtype,
        "batch": case.batch,
        "length": case.length,
        "memory_length": case.memory,
        "heads": geometry.n_head,
        "head_dim": geometry.d_model // geometry.n_head,
        "layers": geometry.n_layer,
        "features": features,
    }
    return run_case(
        session.context,
        f"{KERNEL} {geometry.name} {case.label}",
        columns,
        [_candidate(session, batch, case, name) for name in providers(session.device)],
        lambda: batch.exact,
        result_names(model),
        yardstick=lambda: batch.by_parts(DTYPES[case.dtype]),
    )


def _candidate(session: Session, batch: Batch, case: PretrainingCase, name: str) -> Candidate:
    status = reason = ""
    compiles = name.endswith("_compile")
    if compiles:
        status, reason = session.compile_status()
    held: list[Callable[[], Any]] = []

    def build() -> Work:
        work = make_work(name, batch, case)
        held.append(work.run)
        if not compiles:
            return work

        def result() -> Tensors:
            with session.counted_as_compiling():
                return work.result()

        return Work(work.run, result)

    memory = None
    if session.preset.compiled_memory or not compiles:
        geometry = asdict(batch.source.geometry)
        request = {"provider": name, "case": asdict(case), "geometry": geometry}
        memory = session.memory_probe(__name__, request, lambda: held[0])
    count = case.flops(batch.source.geometry)
    return Candidate(name, build, True, status, reason, flops=count, memory_mib=memory)


def make_work(name: str, batch: Batch, case: PretrainingCase) -> Work:
    """Return the work of a provider in the case's dtype; the weights are shared."""
    inputs, dtype = batch.inputs, DTYPES[case.dtype]
    own: Any = share(batch.model)
    dense = name.startswith("hf_")
    if not dense:
        import xlnet_fast

        own = xlnet_fast.accelerate(own, backend=backend_of(name))
    called: Any = torch.compile(own, dynamic=False) if name.endswith("_compile") else own
    arguments = inputs.arguments(torch.float32, dense=dense)

    def step() -> None:
        own.train()
        try:
            with precision(dtype, batch.device):
                losses = target_losses(called(**arguments).logits, inputs.labels)
                loss = mean_loss(losses, inputs.labels)
            loss.backward()
        finally:
            # The weights are shared: the next would add to what one out of memory leaves.
            own.zero_grad(set_to_none=True)

    return Work(step, lambda: results(called, inputs, dtype, dense=dense))


def memory_request(request: dict[str, Any]) -> Callable[[], Any]:
    """Return the function whose memory the child process of `harness/memory.py` measures.

    The child uses random weights of the same geometry: memory does not depend on the values.
    """
    case = PretrainingCase(**request["case"])
    shape = PretrainingShape(
        Geometry(**request["geometry"]),
        case.batch, case.length, case.reuse_len, case.targets, case.memory,
    )  # fmt: skip
    batch = Batch(load(shape.geometry), shape, torch.device("cpu"))
    return make_work(request["provider"], batch, case).run
