"""One library's Transformer-XL in a process of its own: a line of JSON in, a line of JSON out.

Started by the interpreter of an environment that has the library. It imports nothing of this
project, nor what the environment may lack: the first message names the module to take the model
from. A message has the name of what to do in "do" and the arguments beside it; an answer has
"error" where that raised.
"""

from __future__ import annotations

import copy
import gc
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES["fp64"] = torch.float64
_ROWS = 256  # of a gradient that are compared: of the words' vectors there are too many


@torch.no_grad()
def spread(model: Any) -> None:
    """Give a model random weights in place, none of them zero, all of them multiples in bf16.

    The words' vectors have a size at which embeddings and logits have a deviation of about one, the
    layers one at which scores differ by more than one from key to key. A cluster is as likely as
    its words are many, so that a text has words of each.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    ends = [*config.cutoffs, config.vocab_size]
    sizes = torch.tensor([float(b - a) for a, b in pairwise(ends)])
    for name, weight in model.named_parameters():
        value = torch.randn(weight.shape, generator=generator)
        if name.endswith("layer_norm.weight"):
            value = 1 + 0.1 * value
        elif name.endswith("cluster_bias"):
            value = sizes.log() + 0.1 * value
        elif name.endswith(("r_w_bias", "r_r_bias")):
            value *= 0.5
        elif weight.dim() == 1:
            value *= 0.1
        elif name.endswith("cluster_weight"):
            value *= weight.shape[1] ** -0.5
        elif "emb_" in name or ".out_" in name:
            value *= (config.d_model * weight.shape[1]) ** -0.25
        else:
            value *= 1.28 * config.d_model**-0.5
        weight.copy_(value.bfloat16())


class Worker:
    """Holds a model and one case."""

    def __init__(self) -> None:
        self._model: Any = None
        self._timed: Any = None
        self._case: dict[str, Any] = {}
        self._ids: list[torch.Tensor] = []
        self._given: list[torch.Tensor] = []
        self._carried: Any = None
        self._turn = 0

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do what a message says; {"error": ...} where that raises."""
        doings: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self._load, "case": self._begin, "result": self._result, "run": self._run,
        }  # fmt: skip
        arguments = dict(message)
        try:
            return doings[arguments.pop("do")](**arguments)
        except Exception as error:
            lines = str(error).strip().splitlines() or ["(no message)"]
            return {"error": f"{type(error).__name__}: {lines[0]}"[:300]}

    def _load(
        self, module: str, config: dict[str, Any], weights: str, make: bool, threads: int
    ) -> dict[str, Any]:
        """Make the model, and either write random weights or read those of another."""
        import transformers

        torch.set_num_threads(threads)
        library = importlib.import_module(module)
        self._model = library.TransfoXLLMHeadModel(library.TransfoXLConfig(**config)).eval()
        if make:
            spread(self._model)
            state = self._model.state_dict()
            save_file({name: tensor.clone() for name, tensor in state.items()}, weights)
        else:
            self._model.load_state_dict(load_file(weights))
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def _begin(
        self, pass_name: str, dtype: str, ids: list[Any], mems: str, memory: int, new: int
    ) -> dict[str, Any]:
        """Take a case: segments (segments, B, L), and a file with the memory of the check."""
        self._timed = self._carried = None
        self._case = {"pass_name": pass_name, "dtype": dtype, "memory": memory, "new": new}
        self._ids, self._turn = [torch.tensor(segment) for segment in ids], 0
        tensors = load_file(mems)
        self._given = [tensors[name] for name in sorted(tensors, key=int)]
        self._timed = self._in(dtype)
        return {}

    def _result(self, dtype: str, path: str, plain: bool) -> dict[str, Any]:
        """Write what is checked to a file.

        plain: by the code that also returns the probabilities, which no fused kernel does.
        """
        same = dtype == self._case["dtype"]
        model = self._timed if same else self._in(dtype)
        what = {"forward": self._losses, "training_step": self._gradients, "text": self._tokens}
        with _Double() if dtype == "fp64" else nullcontext():
            found = what[self._case["pass_name"]](model, plain)
        # A library may give losses in fp32 where another gives them in the model's dtype.
        floats = {
            name: x.detach().to(DTYPES[dtype]) for name, x in found.items() if x.is_floating_point()
        }
        save_file({name: x.contiguous() for name, x in (found | floats).items()}, path)
        return {}

    def _run(self) -> dict[str, Any]:
        """Do it, and tell how many seconds a call took.

        A text is read whole: what keeps its memory may be moved once in a few segments.
        """
        step = {"forward": self._read, "training_step": self._train, "text": self._write}
        pass_name, model = self._case["pass_name"], self._timed
        segments = self._ids
        if pass_name != "forward":
            segments = [segments[self._turn % len(segments)]]
            self._turn += 1
        gc.collect()
        start = time.perf_counter()
        for ids in segments:
            step[pass_name](model, ids)
        return {"seconds": (time.perf_counter() - start) / len(segments)}

    def _in(self, dtype: str) -> Any:
        """The model in a dtype, in evaluation, with the case's memory."""
        model = self._model
        if dtype != "fp32":
            model = copy.deepcopy(model).to(DTYPES[dtype])
        model.reset_memory_length(self._case["memory"])
        return model.eval()

    def _read(self, model: Any, ids: torch.Tensor) -> None:
        with torch.no_grad():
            self._carried = model(ids, mems=self._carried, labels=ids).mems

    def _train(self, model: Any, ids: torch.Tensor) -> None:
        model.train()
        output = model(ids, mems=self._carried, labels=ids)
        output.loss.backward()
        model.zero_grad(set_to_none=True)
        self._carried = output.mems

    def _write(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        from transformers import LogitsProcessorList

        model.generation_config.eos_token_id = None  # a text that ended early would not be as long
        tokens: torch.Tensor = model.generate(
            ids, max_new_tokens=self._case["new"], do_sample=False, pad_token_id=0,
            logits_processor=LogitsProcessorList([_once()]),
        )  # fmt: skip
        return tokens[:, ids.shape[1] :]

    def _losses(self, model: Any, plain: bool) -> dict[str, torch.Tensor]:
        """Of segments with a memory that is carried on, and what is memory after them.

        Only the third may find all of its memory's keys made by the one before.
        """
        found, mems = {}, self._given_to(model)
        with torch.no_grad(), _in_order(model):
            for number, ids in enumerate(self._ids[:3]):
                output = model(ids, mems=mems, labels=ids, output_attentions=plain)
                mems = output.mems
                found[f"losses of segment {number + 1}"] = output.losses
        return found | {f"memory of layer {i + 1}": rows for i, rows in enumerate(mems)}

    def _gradients(self, model: Any, plain: bool) -> dict[str, torch.Tensor]:
        """Losses of a segment, and some rows of each gradient, without dropout."""
        ids = self._ids[0]
        with _without_dropout(model), _in_order(model):
            output = model(ids, mems=self._given_to(model), labels=ids, output_attentions=plain)
            output.loss.backward()
        found = {"losses": output.losses}
        for name, weight in model.named_parameters():
            grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            rows = grad[:: max(1, len(grad) // _ROWS)] if grad.dim() > 1 else grad
            found[f"gradient of {name}"] = rows.clone()
        model.zero_grad(set_to_none=True)
        return found

    def _tokens(self, model: Any, plain: bool) -> dict[str, torch.Tensor]:
        """The text itself."""
        return {"tokens": self._write(model, self._ids[0])}

    def _given_to(self, model: Any) -> list[torch.Tensor]:
        return [rows.to(next(model.parameters()).dtype) for rows in self._given]


def _once() -> Any:
    """What lets `generate` choose no token a second time: a text that varies and is greedy still.

    Without it a model with random weights repeats itself, and the check would see little.
    """
    from transformers import LogitsProcessor

    class Once(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            return scores.scatter(1, input_ids, -math.inf)

    return Once()


class _Double(TorchFunctionMode):
    """Leaves float64 as it is where a model asks for fp32.

    Hugging Face's masks scores in fp32, with the least number of their own dtype: in float64 it
    raises, and if it did not, its result would be no oracle.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _in_order(model: Any) -> Any:
    """Hugging Face's losses in the order of the tokens, in place of that of their clusters."""
    before = getattr(model.crit, "keep_order", None)
    if before is not None:
        model.crit.keep_order = True
    try:
        yield
    finally:
        if before is not None:
            model.crit.keep_order = before


@contextmanager
def _without_dropout(model: Any) -> Any:
    """Training, but with nothing left out at random."""
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    before = [module.p for module in dropouts]
    model.train()
    for module in dropouts:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in zip(dropouts, before, strict=True):
            module.p = p
        model.eval()


def serve(lines: Iterable[str], send: Callable[[str], Any]) -> None:
    """Answer one line after the other."""
    worker = Worker()
    for line in lines:
        send(json.dumps(worker.answer(json.loads(line))) + "\n")


if __name__ == "__main__":
    # Libraries may print: what they say goes where errors go.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(sys.stdin, answers.write)
