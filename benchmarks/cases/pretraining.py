"""One pretraining step on real text: the batch in both forms, the memory, the loss.

Sequences, targets and permutation are those of `PermutationStreams`, half of the rows running
backwards (`bi_data`); the memory is what Hugging Face's model remembers of the steps before. Half
precision is autocast on fp32 weights, as Trainer runs it: with a target mapping, Hugging Face's
XLNet refuses weights of any other dtype.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlnet_fast.text import SPECIAL_TOKENS

from .corpus import Corpus
from .model import compared_parameters, in_dtype
from .rel_attention import DTYPES
from .shapes import Geometry

Arguments = dict[str, Any]
# The float64 pass of this many scores a head fits a GPU beside a large model.
_MAX_SCORES = 2 * 512 * (512 + 384)
_IGNORED = -100


@dataclass(frozen=True)
class PretrainingCase:
    """B batch, L tokens of which I' are predicted, M memory, and the dtype of the arithmetic.

    reuse_len: tokens of a sequence that its memory keeps, and by which a step advances.
    """

    batch: int
    length: int = 512
    reuse_len: int = 256
    targets: int = 85
    memory: int = 384
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.batch % 2:
            raise ValueError(f"bi_data needs an even batch, got {self.batch}")
        if self.memory < 1:
            raise ValueError(f"memory must be at least 1 token, got {self.memory}")

    @property
    def label(self) -> str:
        """A short name for tables and progress bars."""
        return f"{self.batch}x{self.length}+{self.memory} {self.dtype}"

    def flops(self, geometry: Geometry) -> float:
        """Return the necessary operations of forward and backward.

        Linear layers three times: q, o and feed-forward of both streams, k and v of all J keys, r
        once per direction, the head of the targets. Attention 22T with T = B (I + I') J H.
        """
        b, i, d = self.batch, self.length, geometry.d_model
        rows, j = i + self.targets, self.memory + i
        layer = 2 * d * d * (2 * b * rows + 2 * b * j + 2 * (i + j))
        layer += 2 * b * rows * 2 * d * geometry.d_inner
        head = 2 * b * self.targets * d * geometry.vocab_size
        return float(geometry.n_layer * (3 * layer + 22 * b * rows * j * d) + 3 * head)


@dataclass
class PretrainingInputs:
    """What the model gets in a step.

    compact: arguments of ours, `permutation_ranks` and `target_positions` among them. dense: of
    Hugging Face's, `perm_mask` and `target_mapping` among them. labels: (B, I'), -100 for none.
    memory: (M, B, H) for each layer, in fp32.
    """

    compact: Arguments
    dense: Arguments
    labels: Tensor
    memory: list[Tensor]

    def arguments(self, dtype: torch.dtype, *, dense: bool) -> Arguments:
        """Return all arguments of the forward in one of the two forms, for weights of a dtype."""

        def cast(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        given = {name: cast(x) for name, x in (self.dense if dense else self.compact).items()}
        return given | {"mems": [cast(x) for x in self.memory], "use_mems": True}

    def part(self, rows: Tensor) -> PretrainingInputs:
        """Return some rows of the batch, in the dense form alone."""
        dense = {name: x[rows] for name, x in self.dense.items()}
        return PretrainingInputs({}, dense, self.labels[rows], [x[:, rows] for x in self.memory])


def set_memory(model: Any, case: PretrainingCase) -> None:
    """Make an `XLNetLMHeadModel` keep the memory of a case."""
    trunk = model.transformer
    trunk.mem_len, trunk.reuse_len, trunk.bi_data = case.memory, case.reuse_len, True


def double(model: nn.Module, device: torch.device) -> Any:
    """Return a float64 copy of an `XLNetLMHeadModel`, with the positions that it has in fp32."""
    wide: Any = in_dtype(model, torch.float64, device)
    encode = wide.transformer.relative_positional_encoding
    wide.transformer.relative_positional_encoding = lambda *a, **k: encode(*a, **k).double()
    return wide


def precision(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a model computes in a dtype: autocast in half precision."""
    if dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(device.type, dtype)
    return nullcontext()


def make_inputs(
    model: Any, corpus: Corpus, case: PretrainingCase, device: torch.device
) -> PretrainingInputs:
    """Return the first batch of the text whose memory is full, and that memory, on a device.

    model: Hugging Face's in fp32 on that device, set up by `set_memory`. Its memory is rounded to
    bf16, so that it is the same numbers in every dtype.
    Raises `ArgumentError` for sizes that do not fit each other.
    """
    *earlier, (compact, dense) = [
        tuple(_on_device(form, device) for form in forms) for forms in make_batches(corpus, case)
    ]
    memory: Any = None
    for _, batch in earlier:
        context = {n: x for n, x in batch.items() if n not in ("labels", "target_mapping")}
        with torch.no_grad():  # the memory is that of the content stream
            memory = model.eval().transformer(**context, mems=memory, use_mems=True).mems
    labels = compact.pop("labels")
    del dense["labels"]
    return PretrainingInputs(compact, dense, labels, [x.bfloat16().float() for x in memory])


def make_batches(corpus: Corpus, case: PretrainingCase) -> list[tuple[Arguments, Arguments]]:
    """Return consecutive batches, compact and dense, as many as fill the memory and one more.

    A text that is too short for them is repeated.
    """
    from xlnet_fast.train.pretraining.collator import collate
    from xlnet_fast.train.pretraining.corpus import Corpus as Text
    from xlnet_fast.train.pretraining.corpus import Vocabulary
    from xlnet_fast.train.pretraining.streams import PermutationStreams, SequenceShape

    steps = -(-case.memory // case.reuse_len)
    perm_size = min(case.reuse_len, case.length - case.reuse_len)
    shape = SequenceShape(case.length, case.reuse_len, perm_size, case.targets, bi_data=True)
    wanted = case.batch // 2 * (case.length + steps * case.reuse_len)
    times = -(-wanted // len(corpus.ids))
    lines = torch.cat([corpus.lines + n * len(corpus.ids) for n in range(times)])
    text = Text(corpus.ids.repeat(times).numpy(), lines.numpy(), lines[:1].numpy())
    # <eod> and <unk> matter to who encodes the text, which was done.
    eod, unk = map(SPECIAL_TOKENS.index, ("<eod>", "<unk>"))
    starts = corpus.word_starts.numpy()
    vocabulary = Vocabulary(len(starts), starts, corpus.sep_id, corpus.cls_id, eod=eod, unk=unk)
    streams = PermutationStreams(text, vocabulary, shape, case.batch, shuffle=False)
    batches = []
    for step in range(steps + 1):
        items = streams.__getitems__(range(step * case.batch, (step + 1) * case.batch))
        batches.append((collate(items), collate(items, dense=True)))
    return batches


def _on_device(batch: Arguments, device: torch.device) -> Arguments:
    return {
        name: tuple(part.to(device) for part in x) if isinstance(x, tuple) else x.to(device)
        for name, x in batch.items()
    }


def target_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each target, (B, I'), in fp32 or float64; 0 where there is none.

    As `PretrainingTrainer` computes it, whatever the dtype of the model.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    flat = F.cross_entropy(
        wide.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none"
    )
    return flat.view(labels.shape)


def mean_loss(losses: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the targets that there are."""
    return losses.sum() / (labels != _IGNORED).sum()


def checked_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters whose gradients are compared: three layers, embeddings and the head."""
    found = {f"transformer.{n}": p for n, p in compared_parameters(model.transformer).items()}
    found["transformer.mask_emb"] = model.transformer.mask_emb
    found["lm_loss.bias"] = model.lm_loss.bias
    return found


def parts(case: PretrainingCase) -> list[Tensor]:
    """Cut the batch into rows that fit a float64 pass: each as many forward as backward ones."""
    half = case.batch // 2
    scores = case.length * (case.length + case.memory)
    pairs = max(1, _MAX_SCORES // (2 * scores))
    forward = torch.arange(half).split(pairs)
    return [torch.cat([rows, rows + half]) for rows in forward]


def results(
    model: Any,
    inputs: PretrainingInputs,
    dtype: torch.dtype,
    *,
    dense: bool,
    rows: list[Tensor] | None = None,
) -> list[Tensor]:
    """Return what the check compares: the losses of the targets, their mean, and gradients.

    All computed in `dtype` and rounded to it, without dropout. model: perhaps compiled.
    rows: batch elements of each pass, in the dense form; gradients of parts add up, in float64 and
    rounded once. By default the whole batch at once.
    """
    own = getattr(model, "_orig_mod", model)
    own.eval()
    own.zero_grad(set_to_none=True)  # a step that ran out of memory may have left some
    compared = checked_parameters(own).values()
    totals = [torch.zeros_like(p, dtype=torch.float64) for p in compared]
    losses = torch.zeros(inputs.labels.shape, dtype=torch.float64, device=inputs.labels.device)
    count = (inputs.labels != _IGNORED).sum()
    everything = torch.arange(len(inputs.labels))
    for taken in [everything] if rows is None else rows:
        part = inputs if rows is None else inputs.part(taken)
        arguments = part.arguments(own.dtype, dense=dense)
        with precision(dtype, part.labels.device):
            found = target_losses(model(**arguments).logits, part.labels)
        (found.sum() / count).backward()
        losses[taken] = found.detach().double()
        for total, parameter in zip(totals, compared, strict=True):
            if parameter.grad is not None:
                total += parameter.grad
        own.zero_grad(set_to_none=True)
    loss = losses.sum() / count
    return [x.to(dtype) for x in (losses, loss, *totals)]


def result_names(model: Any) -> list[str]:
    """Return the names of what `results` gives, in order."""
    gradients = [f"grad of {name}" for name in checked_parameters(model)]
    return ["loss of each target", "loss", *gradients]
