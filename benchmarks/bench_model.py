"""Whole XLNet models on real text: ours against HF eager, HF compiled and the bare matrix products.

Run it alone: python -m benchmarks.bench_model --preset full --out DIR
A training step is forward, a mean-square loss, backward and AdamW with learning rate 0 (so that
every step and provider sees the same weights), with dropout as configured; its check runs without
dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .configs import TRAINING_STEP, Geometry, ordered
from .corpus import Corpus, load_corpus, make_batch
from .floor import GemmFloor
from .model_case import (
    ModelCase,
    compared_parameters,
    flops,
    geometry_of,
    in_dtype,
    last_hidden,
    load_model,
    random_model,
    share,
)
from .record import Row
from .rel_attention_case import DTYPES, FORWARD
from .runner import Candidate, Tensors, Work, run_case
from .session import Session

KERNEL = "model"


def providers(device: torch.device) -> tuple[str, ...]:
    """Return the names of all providers; what takes minutes to compile comes last.

    On a GPU the kernels that `auto` does not choose are timed by name too.
    """
    from xlnet_fast.ops._dispatch import choose, request_on

    ours: tuple[str, ...] = ("ours",)
    if device.type == "cuda":
        features = ("padding", "segments")
        request = request_on("rel_attention", device, torch.bfloat16, features=features)
        chosen = choose(request).backend
        ours += tuple(f"ours_{name}" for name in ("cuda", "triton") if name != chosen)
    compiled = tuple(f"{name}_compile" for name in ours)
    return ("hf_eager", "gemm_floor", *ours, "hf_compile", *compiled)


def backend_of(provider: str) -> str:
    """Return the backend that a provider of ours names: `ours_triton_compile` names triton."""
    words = provider.removeprefix("ours").removesuffix("_compile").removesuffix("_graph")
    return words.removeprefix("_") or "auto"


@dataclass
class Source:
    """The fp32 model that all providers share, its geometry, and the text."""

    model: nn.Module
    geometry: Geometry
    corpus: Corpus


def load_source(
    geometry: Geometry,
    model: str | None = None,
    text: str | None = None,
    architecture: str = "XLNetModel",
) -> Source:
    """Make the random model of a geometry, or load the user's; tokenise the text.

    architecture: the name of the model's class in transformers.
    Raises `ArgumentError` for a model or text that cannot be used.
    """
    if model is None:
        made = random_model(geometry, architecture)
        return Source(made, geometry, load_corpus(text, vocab_size=geometry.vocab_size))
    loaded = load_model(model, architecture)
    own = geometry_of(loaded, "user model")
    return Source(loaded, own, load_corpus(text, vocab_size=own.vocab_size, tokenizer_folder=model))


def cases(session: Session) -> list[tuple[Geometry, ModelCase]]:
    """Return the cases of the preset with the geometry of each."""
    return [
        (shape.geometry or session.preset.geometry, ModelCase(shape.batch, shape.length, dtype, p))
        for shape, dtype, p in ordered(session.preset.model_shapes, session.preset)
    ]


def run(session: Session, model: str | None, text: str | None, source: Source) -> list[Row]:
    """Run every case of the preset and return the rows.

    model, text: the user's, or None. source: what they or the first geometry give, already loaded.
    """
    rows: list[Row] = []
    exact: dict[tuple[Any, ...], Tensors] = {}
    for geometry, case in cases(session):
        if model is None and source.geometry != geometry:
            session.context.step(f"making {geometry.name}")
            source = load_source(geometry, None, text)
        rows += bench_case(session, source, case, exact)
        session.advance()
    return rows


def bench_case(
    session: Session,
    source: Source,
    case: ModelCase,
    exact: dict[tuple[Any, ...], Tensors],
) -> list[Row]:
    """Check, time and record one case. `exact` keeps the last float64 result for other dtypes."""
    torch._dynamo.reset()
    batch = {
        name: x.to(session.device)
        for name, x in make_batch(source.corpus, case.batch, case.length).items()
    }
    model = in_dtype(source.model, DTYPES[case.dtype], session.device)
    key = (source.geometry, case.batch, case.length, case.pass_name)
    names = ["last_hidden_state"]
    if case.pass_name == TRAINING_STEP:
        names += [f"grad of {name}" for name in compared_parameters(source.model)]

    def exact_result() -> Tensors:
        if key not in exact:
            exact.clear()  # results of an earlier shape are of no more use
            double = in_dtype(source.model, torch.float64, session.device)
            exact[key] = _result(double, batch, case, rows=_exact_rows(case))
        return exact[key]

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    candidates = [
        _candidate(session, source, case, model, batch, optimizer, name)
        for name in providers(session.device)
    ]
    columns = {
        "kernel": KERNEL,
        "pass_name": case.pass_name,
        "dtype": case.dtype,
        "batch": case.batch,
        "length": case.length,
        "memory_length": 0,
        "heads": source.geometry.n_head,
        "head_dim": source.geometry.d_model // source.geometry.n_head,
        "layers": source.geometry.n_layer,
        "features": "padding+segments",
    }
    return run_case(
        session.context,
        f"{source.geometry.name} {case.label}",
        columns,
        candidates,
        exact_result,
        names,
        yardstick=lambda: _result(
            in_dtype(source.model, DTYPES[case.dtype], session.device),
            batch,
            case,
            _exact_rows(case),
        ),
    )


def _candidate(
    session: Session,
    source: Source,
    case: ModelCase,
    model: nn.Module,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    name: str,
) -> Candidate:
    status = reason = ""
    compiles = name.endswith("_compile")
    if compiles:
        status, reason = session.compile_status()
    if name == "gemm_floor" and case.pass_name == TRAINING_STEP:
        status, reason = "unavailable", "the floor is defined for the forward pass"
    held: list[Callable[[], Any]] = []

    def build() -> Work:
        work = make_work(name, source.geometry, case, model, batch, optimizer)
        held.append(work.run)
        if not compiles:
            return work

        def result() -> Tensors:
            with session.counted_as_compiling():
                return work.result()

        return Work(work.run, result)

    memory = None
    if session.preset.model_memory and (session.preset.compiled_memory or not compiles):
        request = {
            "provider": name,
            "case": asdict(case),
            "geometry": asdict(source.geometry),
        }
        memory = session.memory_probe("bench_model", request, lambda: held[0])
    return Candidate(
        name, build, name != "gemm_floor", status, reason,
        flops=flops(case, source.geometry), memory_mib=memory,
    )  # fmt: skip


def make_work(
    name: str,
    geometry: Geometry,
    case: ModelCase,
    model: nn.Module,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> Work:
    """Return the work of a provider on a model in the case's dtype; the weights are shared."""
    if name == "gemm_floor":
        floor = GemmFloor(model, geometry, case.batch, case.length)
        return Work(floor, lambda: [floor()])
    own = share(model)
    if name.startswith("ours"):
        import xlnet_fast

        own = xlnet_fast.accelerate(own, backend=backend_of(name))
    called: Any = torch.compile(own, dynamic=False) if name.endswith("_compile") else own
    if case.pass_name == FORWARD:

        def forward() -> Tensors:
            with torch.no_grad():
                return [last_hidden(called, batch)]

        return Work(forward, forward)

    def step() -> None:
        own.train()
        loss = last_hidden(called, batch).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Work(step, lambda: _result(called, batch, case))


def _exact_rows(case: ModelCase) -> int:
    """Return how many batch elements fit a float64 pass: as much attention as 4 x 512."""
    return max(1, 4 * 512**2 // case.length**2)


def _result(
    model: Any, batch: dict[str, Tensor], case: ModelCase, rows: int | None = None
) -> Tensors:
    """Return what the check compares: the output, and for a training step some gradients.

    rows: batch elements per pass. Elements do not meet in the model, so outputs of parts stand side
    by side and gradients add up, in float64 and rounded once.
    """
    trunk = getattr(model, "_orig_mod", model)
    trunk.eval()
    trunk.zero_grad(set_to_none=True)  # shared; one that ran out of memory may have left some
    outputs = []
    compared = compared_parameters(trunk).values() if case.pass_name == TRAINING_STEP else ()
    gradients = [torch.zeros_like(p, dtype=torch.float64) for p in compared]
    # A loss of mean squares is almost constant after the last layer norm; a fixed random direction
    # is not. It is drawn for the whole batch, so that parts add up to it.
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.length, trunk.config.d_model)
    direction = torch.randn(shape, generator=generator)
    for start in range(0, case.batch, rows or case.batch):
        part = slice(start, start + (rows or case.batch))
        inputs = {name: x[part] for name, x in batch.items()}
        with torch.set_grad_enabled(case.pass_name == TRAINING_STEP):
            hidden = last_hidden(model, inputs)
            if case.pass_name == TRAINING_STEP:
                (hidden * direction[part].to(hidden.device, hidden.dtype)).sum().backward()
                for total, parameter in zip(gradients, compared, strict=True):
                    if parameter.grad is not None:
                        total += parameter.grad
                trunk.zero_grad(set_to_none=True)
        outputs.append(hidden.detach())
    rounded = [total.to(p.dtype) for total, p in zip(gradients, compared, strict=True)]
    return [torch.cat(outputs), *rounded]


def memory_request(request: dict[str, Any]) -> Callable[[], Any]:
    """Return the function whose memory the child process of `memory.py` measures.

    The child uses random weights of the same geometry: memory does not depend on the values.
    """
    geometry, case = Geometry(**request["geometry"]), ModelCase(**request["case"])
    source = load_source(geometry)
    device = torch.device("cpu")
    model = in_dtype(source.model, DTYPES[case.dtype], device)
    batch = make_batch(source.corpus, case.batch, case.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    return make_work(request["provider"], geometry, case, model, batch, optimizer).run


if __name__ == "__main__":
    from .run import main

    raise SystemExit(main(only=(KERNEL,)))
