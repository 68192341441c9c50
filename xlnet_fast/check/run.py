"""``xlnet-fast check``: is every backend right, on this machine, for this model?

Computations of one model, each by every backend that can run here, in fp32 and bf16; of an XLNet
two segments with memory, padding and segment ids, two streams, and a training step with every
gradient; of a speech encoder sounds with and without padding, and a training step. Each tensor is
held to the project's tolerance (``xlnet_fast.tolerance``), whose yardstick is Hugging Face's own
code in the same dtype and whose truth is that code in float64. Training makes gradients that are
small because large terms cancel; there the error of equally good codes is a draw at the scale of
those terms. So what lies outside is judged again with one rounding of every step in place of one of
the result (``xlnet_fast.rounding``).
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator

import torch
from rich.console import Console
from torch import nn
from transformers import XLNetModel

from xlnet_fast.check.encoders import EncoderSubject
from xlnet_fast.check.subject import DTYPES, TRAINING, Computation, Subject
from xlnet_fast.check.table import OnBatch, progress, show
from xlnet_fast.check.trial import Trial, Verdict
from xlnet_fast.check.xlnet import XLNetSubject
from xlnet_fast.checkpoint import load_any_model
from xlnet_fast.ops._dispatch import BACKENDS
from xlnet_fast.rounding import effect_of_rounding
from xlnet_fast.tolerance import more_for_cancellation


def subject_of(model: nn.Module) -> Subject:
    """How a model is compared.

    Raises:
        ArgumentError: it is of no family, or nothing is known to call it with.
    """
    if any(isinstance(module, XLNetModel) for module in model.modules()):
        return XLNetSubject(model)
    return EncoderSubject(model)


def run_check(model: str | None = None, console: Console | None = None) -> int:
    """Check one model, print a table, and return 0, or 1 when anything failed.

    Args:
        model: an XLNet class of transformers for a small random model, a checkpoint folder, a
            Hub id, or None.

    Raises:
        ArgumentError: the model does not exist, cannot be read or is of no known family.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, 120), highlight=False)
    base, title = load_any_model(model)
    with progress(console) as on_batch:
        verdicts = list(check_model(base, on_batch))
    show(console, title, verdicts)
    states = [verdict.status for verdict in verdicts]
    return 0 if "ok" in states and "FAILED" not in states else 1


def check_model(base: nn.Module, on_batch: OnBatch = lambda *_: None) -> Iterator[Verdict]:
    """The verdicts on an fp32 model, one by one."""
    base = copy.deepcopy(base)
    subject = subject_of(base)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # drawn differently by Hugging Face and by us, so compared by tests only
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for name, compute in subject.computations.items():
        for dtype_name, dtype in DTYPES.items():
            rounded = copy.deepcopy(base).to(dtype)
            double = subject.mended(copy.deepcopy(rounded).double(), torch.float64)
            trials = [
                Trial(name, device, dtype_name, backend, subject)
                for device in devices
                for backend in BACKENDS
            ]
            batches = subject.training_batches if name == TRAINING else BATCHES
            for batch in range(batches):
                on_batch(f"{name}, {dtype_name}", batch + 1, batches)
                exact = compute(double, batch)
                for device in devices:
                    model = copy.deepcopy(rounded).to(device)
                    eager = compute(subject.mended(copy.deepcopy(model), dtype), batch)
                    for trial in trials:
                        if trial.device == device:
                            trial.run(compute, model, batch, eager, exact)
            more = functools.cache(functools.partial(_more, compute, double, dtype))
            for trial in trials:
                trial.judge_again(more)
            yield from (trial.verdict() for trial in trials)


BATCHES = 3
"""Of computations without gradients."""

_QUERY_BIAS = re.compile(r"\.(r_[wrs]_bias|(pos_)?bias_[uv])$")


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
