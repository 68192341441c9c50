"""``xlnet-fast check``: is every backend right, on this machine, for this model?

Three computations of one XLNet, each by every backend that can run here, in fp32 and bf16: two
segments with memory, padding and segment ids; two streams; a training step with every gradient.
Each tensor is held to the project's tolerance (``xlnet_fast.tolerance``), whose yardstick is
Hugging Face's own code in the same dtype and whose truth is that code in float64. Training makes
gradients that are small because large terms cancel; there the error of equally good codes is a draw
at the scale of those terms. So what lies outside is judged again with one rounding of every step in
place of one of the result (``xlnet_fast.rounding``).
"""

from __future__ import annotations

import copy
import functools
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from transformers import XLNetModel

from xlnet_fast.builder.progress import Progress as Lines
from xlnet_fast.checkpoint import load_model
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.hf import accelerate
from xlnet_fast.ops._dispatch import BACKENDS, choose, request_on
from xlnet_fast.rounding import effect_of_rounding
from xlnet_fast.tolerance import error_and_bound, more_for_cancellation

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH, LENGTH, TARGETS = 2, 40, 7

Results = dict[str, Tensor]
Computation = Callable[[nn.Module, int], Results]
OnBatch = Callable[[str, int, int], None]
"""Hears which batch of which part begins: the part's name, the batch from 1 on, how many."""


@dataclass(frozen=True)
class Verdict:
    """One computation on one device in one dtype by one backend.

    ``error`` and ``bound`` are those of ``worst``, the tensor nearest to its bound or furthest
    beyond; ``status`` is "ok", "FAILED" or "not run", and ``reason`` says why it is not "ok".
    ``cancelling`` tensors are inside by one rounding of every step, not by one of the result.
    """

    computation: str
    device: str
    dtype: str
    backend: str
    status: str
    reason: str = ""
    tensors: int = 0
    worst: str = ""
    error: float = math.nan
    bound: float = math.nan
    cancelling: int = 0


def run_check(model: str | None = None, console: Console | None = None) -> int:
    """Check one model, print a table, and return 0, or 1 when anything failed.

    Args:
        model: an XLNet class of transformers for a small random model, a checkpoint folder, a
            Hub id, or None.

    Raises:
        ArgumentError: the model does not exist, cannot be read or is no XLNet.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, 120), highlight=False)
    base, title = load_model(model)
    with _progress(console) as on_batch:
        verdicts = list(check_model(base, on_batch))
    _show(console, title, verdicts)
    states = [verdict.status for verdict in verdicts]
    return 0 if "ok" in states and "FAILED" not in states else 1


@contextmanager
def _progress(console: Console) -> Iterator[OnBatch]:
    """A spinner on a terminal, else lines on stderr where a part begins or lasts."""
    if console.is_terminal:
        with console.status("") as status:
            yield lambda part, batch, of: status.update(Text(f"{part}, batch {batch} of {of}"))
        return
    with Lines(lambda line: print(line, file=sys.stderr, flush=True)) as lines:

        def on_batch(part: str, batch: int, batches: int) -> None:
            if batch == 1:
                lines.say(f"checking {part}")
            else:
                lines.note(f"checking {part}, batch {batch} of {batches}")

        yield on_batch


def check_model(base: nn.Module, on_batch: OnBatch = lambda *_: None) -> Iterator[Verdict]:
    """The verdicts on an fp32 model, one by one."""
    base = copy.deepcopy(base)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # drawn differently by Hugging Face and by us, so compared by tests only
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for name, compute in COMPUTATIONS.items():
        for dtype_name, dtype in DTYPES.items():
            rounded = copy.deepcopy(base).to(dtype)
            double = _mended(copy.deepcopy(rounded).double(), torch.float64)
            trials = [
                _Trial(name, device, dtype_name, backend, rounded)
                for device in devices
                for backend in BACKENDS
            ]
            batches = _batches(name, base)
            for batch in range(batches):
                on_batch(f"{name}, {dtype_name}", batch + 1, batches)
                exact = compute(double, batch)
                for device in devices:
                    model = copy.deepcopy(rounded).to(device)
                    eager = compute(_mended(copy.deepcopy(model), dtype), batch)
                    for trial in trials:
                        if trial.device == device:
                            trial.run(compute, model, batch, eager, exact)
            more = functools.cache(functools.partial(_more, compute, double, dtype))
            for trial in trials:
                trial.judge_again(more)
            yield from (trial.verdict() for trial in trials)


def _batches(computation: str, model: nn.Module) -> int:
    """How many batches make a fair yardstick.

    The gradient of r_s_bias is one number per head, times a vector: with few of them, the largest
    error of two equally good codes differs by more than the rule's factor now and then.
    """
    return max(3, -(-64 // _trunk(model).config.n_head)) if computation == TRAINING else 3


_QUERY_BIAS = re.compile(r"\.r_[wrs]_bias$")


def _more(
    compute: Computation, double: nn.Module, dtype: torch.dtype, batch: int
) -> dict[str, float]:
    """What one rounding of every step, not of the result alone, adds to each tensor's bound.

    In fp32 the gradients of a layer's three biases are parts of one, that of its query, and get
    what the one of them gets that moves most. For r_s_bias there are two ways to write it, over all
    keys or over those of another segment; what rounding does to Hugging Face's way, where the
    parts of both kinds of keys may cancel again, says too little of the other. Narrower dtypes
    round the gradient of the scores itself, which hides it.
    """
    exact = compute(double, batch)
    effect = effect_of_rounding(lambda: compute(double, batch), exact, dtype)
    more = {key: more_for_cancellation(x, dtype, effect[key]) for key, x in exact.items()}
    if dtype is not torch.float32:
        return more
    of_query: dict[str, float] = {}
    for key, added in more.items():
        layer, is_bias = _QUERY_BIAS.subn("", key)
        if is_bias:
            of_query[layer] = max(added, of_query.get(layer, 0.0))
    return {key: of_query.get(_QUERY_BIAS.sub("", key), added) for key, added in more.items()}


class _Trial:
    """One backend's results on all batches of one computation, held to the rule.

    A tensor's error is the largest over the batches, and so is its bound: on one batch alone,
    Hugging Face is exact by luck now and then, and a bound from that would fail code as good.
    """

    def __init__(
        self, computation: str, device: str, dtype: str, backend: str, model: nn.Module
    ) -> None:
        self.device, self.backend = device, backend
        self.where = (computation, device, dtype, backend)
        self.obstacle = _cannot_run(computation, device, DTYPES[dtype], backend, model)
        self.failure = ""
        self.batches: dict[str, list[tuple[float, float]]] = {}  # error and bound of each
        self.outside_at_first = 0

    def run(
        self, compute: Computation, model: nn.Module, batch: int, eager: Results, exact: Results
    ) -> None:
        """One batch; after a failure, nothing."""
        if self.obstacle or self.failure:
            return
        try:
            actual = compute(accelerate(copy.deepcopy(model), self.backend), batch)
        except Exception as error:  # whatever it is, the user asked whether this works
            self.failure = f"raised {type(error).__name__}: {error}"
            return
        if actual.keys() != exact.keys():
            self.failure = f"not Hugging Face's tensors: {sorted(actual.keys() ^ exact.keys())}"
            return
        for key, value in exact.items():
            self.batches.setdefault(key, []).append(error_and_bound(actual[key], eager[key], value))

    def judge_again(self, more: Callable[[int], dict[str, float]]) -> None:
        """Widens the bounds by what rounding before the result does, where a tensor needs it.

        Args:
            more: of a batch, what is added to each tensor's bound. It takes as long as the batch
                took, so it is asked for until all is inside, where errors are largest first.
        """
        asked: set[int] = set()
        self.outside_at_first = len(self._outside())
        while not self.failure and (outside := self._outside()):
            errors = [error for error, _ in self.batches[self._worst(outside)]]
            left = set(range(len(errors))) - asked
            if not left or not math.isfinite(max(errors)):
                return
            batch = max(left, key=errors.__getitem__)
            asked.add(batch)
            for key, added in more(batch).items():
                error, bound = self.batches[key][batch]
                self.batches[key][batch] = error, bound + added

    def _pooled(self, key: str) -> tuple[float, float]:
        """A tensor's error and bound over all batches."""
        errors, bounds = zip(*self.batches[key], strict=True)
        return max(errors), max(bounds)

    def _worst(self, keys: Iterable[str]) -> str:
        return max(keys, key=lambda key: _ratio(*self._pooled(key)))

    def _outside(self) -> list[str]:
        pooled = {key: self._pooled(key) for key in self.batches}
        return [key for key, (error, bound) in pooled.items() if not error <= bound]

    def verdict(self) -> Verdict:
        """What to tell of it."""
        if self.obstacle:
            return Verdict(*self.where, "not run", self.obstacle)
        if self.failure:
            return Verdict(*self.where, "FAILED", self.failure)
        count = len(self.batches)
        worst, outside = self._worst(self.batches), self._outside()
        status = reason = ""
        if outside:
            reason = f"{len(outside)} of {count} tensors outside: {', '.join(outside[:4])}"
        status = "FAILED" if outside else "ok"
        cancelling = max(0, self.outside_at_first - len(outside))
        return Verdict(*self.where, status, reason, count, worst, *self._pooled(worst), cancelling)


def _ratio(error: float, bound: float) -> float:
    return error / bound if bound > 0 else (math.inf if error > 0 else 0.0)


def _cannot_run(
    name: str, device: str, dtype: torch.dtype, backend: str, model: nn.Module
) -> str | None:
    op = "two_stream_attention" if name == TWO_STREAMS else "rel_attention"
    where = torch.device(device)
    head_dim = _trunk(model).config.d_head
    try:
        choose(
            request_on(op, where, dtype, head_dim=head_dim, needs_grad=name == TRAINING), backend
        )
    except BackendUnavailable as error:
        return str(error).partition(": ")[2]
    return None


# --- the computations ----------------------------------------------------------------------------


def _trunk(model: nn.Module) -> Any:
    """The ``XLNetModel`` inside a model, or the model itself."""
    return next(module for module in model.modules() if isinstance(module, XLNetModel))


def _mended(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Hugging Face's model with its position table in ``dtype``.

    Its two streams multiply the fp32 table with weights of another dtype, and raise; with the table
    cast, as its single stream does, its own code gives the result it means to give.
    """
    trunk = _trunk(model)
    encode = trunk.relative_positional_encoding
    trunk.relative_positional_encoding = lambda *a, **k: encode(*a, **k).to(dtype)
    return model


def _inputs(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """ids, attention_mask and token_type_ids, (B, L): row 0 padded on the left, in two segments."""
    trunk = _trunk(model)
    ids = torch.randint(0, trunk.config.vocab_size, (BATCH, LENGTH), generator=_random(seed))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    segments = (torch.arange(LENGTH) >= LENGTH // 2).long().repeat(BATCH, 1)
    segments[:, -1] = 2
    given = {"input_ids": ids, "token_type_ids": segments}
    if trunk.attn_type == "bi":  # with "uni", Hugging Face takes no mask for more than one text
        mask[0, :9], segments[0, :9] = 0, 3
        given["attention_mask"] = mask
    return {name: x.to(trunk.device) for name, x in given.items()}


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def _inference(model: nn.Module, batch: int) -> Results:
    """Two segments of text, the second with the memory of the first."""
    trunk = _trunk(model.eval())
    first = trunk(**_inputs(model, 2 * batch), use_mems=True)
    second = trunk(**_inputs(model, 2 * batch + 1), use_mems=True, mems=list(first.mems))
    results = {"last_hidden_state": second.last_hidden_state}
    return results | {f"mems[{i}]": memory for i, memory in enumerate(second.mems)}


@torch.no_grad()
def _two_streams(model: nn.Module, batch: int) -> Results:
    """A random factorisation order; predicted: its first token, which sees none, and its last."""
    trunk = _trunk(model.eval())
    given = _inputs(model, batch)
    generator = _random(100 + batch)
    ranks = torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(BATCH)])
    order = ranks.argsort(1)
    targets = torch.cat([order[:, :1], order[:, 1 - TARGETS :]], 1)
    mapping = nn.functional.one_hot(targets, LENGTH).to(trunk.device, trunk.dtype)
    if trunk.attn_type == "bi":
        hidden = ranks[:, :, None] <= ranks[:, None, :]
        given["perm_mask"] = hidden.to(trunk.device, torch.float32)
    output = trunk(**given, target_mapping=mapping, output_hidden_states=True)
    streams = {f"hidden_states[{i}]": state for i, state in enumerate(output.hidden_states)}
    return {"last_hidden_state": output.last_hidden_state, **streams}


def _training(model: nn.Module, batch: int) -> Results:
    """Hidden states and the gradient of every parameter of the ``XLNetModel``.

    The head's own gradients are left out: Hugging Face's code computes them from the last hidden
    state, and some are exactly zero (the bias of a softmax), where a relative rule decides nothing.
    """
    model.train()
    given = _inputs(model, batch)
    trunk = _trunk(model)
    if type(model).__name__ == "XLNetForMultipleChoice":
        given = {key: torch.stack([x, x.roll(1, 0)], 1) for key, x in given.items()}
    with torch.enable_grad():
        if trunk is model:
            output = model(**given, output_hidden_states=True)
            state = output.last_hidden_state
            direction = torch.randn(state.shape, generator=_random(200 + batch))
            (state * direction.to(state)).mean().backward()
        else:
            labels = _labels(model, given["input_ids"])
            output = model(**given, **labels, output_hidden_states=True)
            output.loss.backward()
    results = {f"hidden_states[{i}]": x.detach() for i, x in enumerate(output.hidden_states)}
    for name, parameter in trunk.named_parameters():
        if parameter.grad is not None:
            results[f"d {name}"] = parameter.grad
    model.zero_grad(set_to_none=True)
    return results


def _labels(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What the head of a model is trained on."""
    name, count = type(model).__name__, model.config.num_labels
    row = torch.arange(BATCH, device=ids.device)
    if name == "XLNetLMHeadModel":
        return {"labels": ids}
    if name == "XLNetForSequenceClassification":
        if model.config.problem_type == "multi_label_classification":
            return {"labels": nn.functional.one_hot(row % count, count).to(model.dtype)}
        regression = count == 1 or model.config.problem_type == "regression"
        shape = (BATCH,) if count == 1 else (BATCH, count)
        return {
            "labels": torch.ones(shape).to(ids.device, model.dtype) if regression else row % count
        }
    if name == "XLNetForTokenClassification":
        return {"labels": ids % count}
    if name == "XLNetForMultipleChoice":
        return {"labels": row % 2}
    spans = {"start_positions": row + 12, "end_positions": row + 17}
    if name == "XLNetForQuestionAnswering":
        spans |= {"cls_index": row * 0 + LENGTH - 1, "is_impossible": (row % 2).to(model.dtype)}
    return spans


TWO_STREAMS = "two streams"
TRAINING = "training step"
COMPUTATIONS: dict[str, Computation] = {
    "memory and padding": _inference,
    TWO_STREAMS: _two_streams,
    TRAINING: _training,
}


# --- the table ------------------------------------------------------------------------------------


def _show(console: Console, title: str, verdicts: list[Verdict]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("computation", "device", "dtype", "backend"):
        table.add_column(column, no_wrap=True)
    for column in ("tensors", "error", "bound"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("tensor nearest to its bound", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    left_out: dict[str, None] = {}
    for v in verdicts:
        if v.status == "not run":
            left_out[f"{v.backend} on {v.device} was not run: {v.reason}"] = None
            continue
        numbers = [str(v.tensors), f"{v.error:.1e}", f"{v.bound:.1e}"] if v.tensors else ["-"] * 3
        style = "green" if v.status == "ok" else "bold red"
        cells = [v.computation, v.device, v.dtype, v.backend, *numbers, v.worst or "-"]
        table.add_row(*(Text(cell) for cell in cells), Text(v.status, style=style))
    console.print(table)
    for line in left_out:
        console.print(Text(line, style="dim"))
    failed = [v for v in verdicts if v.status == "FAILED"]
    for v in failed:
        where = f"{v.computation}, {v.device}, {v.dtype}, {v.backend}"
        console.print(Text(f"FAILED: {where}: {v.reason}", style="bold red"))
    passed = sum(v.status == "ok" for v in verdicts)
    cancelling = sum(v.cancelling for v in verdicts)
    if cancelling:
        words = "tensor is" if cancelling == 1 else "tensors are"
        console.print(Text(f"{cancelling} {words} inside by one rounding of every step."))
    console.print(
        Text(
            f"{passed} passed, {len(failed)} failed. Error: largest against float64; bound: twice "
            "that of Hugging Face's own code in the same dtype plus one rounding, of the result "
            "or, where terms cancel, of every step before it."
        )
    )
