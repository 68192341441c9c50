"""A checkpoint that answers: loaded once, then asked for single records or for many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from xlnet_fast.checkpoint import load_config, load_weights
from xlnet_fast.errors import ArgumentError, NotFinite
from xlnet_fast.generate.run import checked_device, checkpoint_of
from xlnet_fast.hf import accelerate
from xlnet_fast.predict.attributions import GRADIENT, attributions
from xlnet_fast.predict.pieces import TOKEN_BUDGET, Encoded, Piece, batches_by_length
from xlnet_fast.predict.tasks.base import Reading, Task
from xlnet_fast.predict.tasks.embeddings import Embeddings
from xlnet_fast.predict.tasks.generation import Generation
from xlnet_fast.predict.tasks.multiple_choice import MultipleChoice
from xlnet_fast.predict.tasks.question_answering import QuestionAnswering
from xlnet_fast.predict.tasks.text_classification import TextClassification
from xlnet_fast.predict.tasks.token_classification import TokenClassification
from xlnet_fast.train.shared.tokenizers import check_vocabulary, load_run_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        TextClassification, TokenClassification, QuestionAnswering, MultipleChoice, Embeddings,
        Generation,
    )
}  # fmt: skip


class Predictor:
    """Answers of one model.

        predictor = Predictor.load("runs/reviews")
        predictor({"text": "A fine film."})              # one record, one answer
        predictor([{"text": "A fine film."}, ...])       # many, batched by length

    The tasks, by ``predictor.task.name``, and the fields of their records:

    - text-classification: ``text``, ``text_pair`` (optional)
    - token-classification: ``text``, or ``tokens``, a list of words
    - question-answering: ``question``, ``context``
    - multiple-choice: ``passage``, ``choices``, a list, ``question`` (optional; "_" in it is where
      the choice belongs)
    - embeddings, of any checkpoint: ``text``
    - generation: ``text``, ``prefix`` (optional, read before it)

    ``encode``, ``run`` and ``decode`` are the three steps of a call, for who makes batches of
    records that come one by one. All may be called from several threads at once; the model computes
    for one at a time.

    Attributes:
        name: the checkpoint.
        task: what it answers; its ``parameters`` say what a request may ask for, by name.
    """

    def __init__(self, task: Task, name: str) -> None:
        """From a model that is loaded; see ``load``."""
        self.task = task
        self.name = name

    @classmethod
    def load(
        cls,
        model: str,
        *,
        task: str | None = None,
        tokenizer: str | None = None,
        dtype: str = "fp32",
        device: str | None = None,
        backend: str = "auto",
        reading: Reading | None = None,
    ) -> Predictor:
        """Load a checkpoint.

        Args:
            model: folder of a checkpoint or of a run of ``finetune`` or ``pretrain``, or a Hub id.
            task: its name; by default that of the checkpoint's class.
            tokenizer: folder or Hub id, by default the model's.
            dtype: of weights and activations, "fp32", "bf16" or "fp16".
            device: "cpu", "cuda" or "cuda:N"; by default the GPU if there is one.
            backend: of the attention.
            reading: how long texts are read; by default in windows of 512 tokens that share 128.

        Raises:
            ArgumentError: a value that cannot be used, a checkpoint that cannot be read, or one
                that has no head for the task.
            BackendUnavailable: the backend that was named cannot run.
        """
        if dtype not in DTYPES:
            raise ArgumentError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        place = checked_device(device)
        name = checkpoint_of(model)
        config = load_config(name)
        kind = task_of(task, config, name)
        heads = [head for head in config.architectures or () if head in kind.architectures]
        weights = load_weights(name, heads[0] if heads else kind.architectures[0]).eval()
        words = load_run_tokenizer(tokenizer, name)
        check_vocabulary(words, weights.config.vocab_size, name)
        transformer = getattr(weights, "transformer", weights)
        transformer.reuse_len = weights.config.reuse_len = None  # of pretraining, as bi_data
        transformer.bi_data = weights.config.bi_data = False
        weights.config.use_mems_eval = False  # memory is asked for where it is wanted
        weights.requires_grad_(False)
        weights.to(device=place, dtype=DTYPES[dtype])
        # Or summaries of the first token, or of the mean, would have padding in them.
        accelerated = accelerate(weights, backend, summarize_real_tokens=True)
        return cls(kind(accelerated, words, reading or Reading()), name)

    def __call__(
        self,
        records: Mapping[str, Any] | str | Iterable[Mapping[str, Any] | str],
        /,
        *,
        token_budget: int = TOKEN_BUDGET,
        **parameters: Any,
    ) -> Any:
        """The answer of a record, or the answers of several in their order.

        Args:
            records: a mapping of the task's fields, or the text of its only required one; or
                several of them.
            token_budget: tokens of a batch, padding included.
            parameters: of the task, ``predictor.task.parameters``.

        Returns:
            A mapping of plain JSON values for each record; ``cut`` is true in it where a part of
            the record was not read.

        Raises:
            ArgumentError: a record or a parameter that cannot be used; of several, says which.
            NotFinite: the model computed values that are no numbers.
        """
        if isinstance(records, (str, Mapping)):
            return self.answers([self.encode(records, **parameters)], token_budget)[0]
        if not isinstance(records, Iterable):
            raise ArgumentError(
                f"records are of type {type(records).__name__}, expected a mapping, a text, or "
                "several of them"
            )
        encoded = []
        for number, record in enumerate(records, 1):
            try:
                encoded.append(self.encode(record, **parameters))
            except ArgumentError as error:
                raise ArgumentError(f"record {number}: {error}") from error
        return self.answers(encoded, token_budget)

    def answers(
        self, encoded: Sequence[Encoded], token_budget: int = TOKEN_BUDGET
    ) -> list[dict[str, Any]]:
        """The answers of encoded records, in their order."""
        results = self._results([piece for one in encoded for piece in one.pieces], token_budget)
        answers, first = [], 0
        for one in encoded:
            last = first + len(one.pieces)
            answers.append(self.decode(one, results[first:last]))
            first = last
        return answers

    def _results(self, pieces: Sequence[Piece], token_budget: int = TOKEN_BUDGET) -> list[Any]:
        """Of pieces, in their order, computed in good batches."""
        results: list[Any] = [None] * len(pieces)
        for batch in batches_by_length(pieces, token_budget):
            for place, result in zip(batch, self.run([pieces[i] for i in batch]), strict=True):
                results[place] = result
        return results

    def encode(self, record: Mapping[str, Any] | str, /, **parameters: Any) -> Encoded:
        """A record as the model reads it: pieces, the rows that batches are made of.

        Args:
            record: a mapping, or the text of its task's only required field.
            parameters: of the task.

        Raises:
            ArgumentError: a record or a parameter that cannot be used.
        """
        if isinstance(record, str):
            if len(self.task.required) != 1:
                fields = ", ".join(self.task.required)
                raise ArgumentError(f"a record of {self.task.name} has the fields {fields}")
            record = {next(iter(self.task.required)): record}
        return self.task.encode(record, **parameters)

    def run(
        self, pieces: Sequence[Piece], interrupted: Callable[[], bool] | None = None
    ) -> list[Any]:
        """The results of the pieces of one batch, on the CPU; waits while another thread computes.

        Args:
            interrupted: whether nobody wants them any more. ``generation`` asks it after each
                token; the batches of other tasks are short, and always computed to their end.

        Raises:
            ArgumentError: they are of different groups.
            writing.Interrupted: ``interrupted`` was true.
        """
        if any(piece.group != pieces[0].group for piece in pieces):
            raise ArgumentError("the pieces of a batch are of different groups, expected one")
        with self.task.computing:
            if interrupted is None:
                return self.task.run(pieces)
            return self.task.run_unless(pieces, interrupted)

    def decode(self, encoded: Encoded, results: Sequence[Any]) -> dict[str, Any]:
        """The answer of a record from the results of its pieces.

        Raises:
            NotFinite: the model computed values that are no numbers, for this record.
        """
        if not all(map(is_finite, results)):
            raise NotFinite("the model computed values that are no numbers")
        answer = self.task.decode(encoded, results)
        return {**answer, "cut": True} if encoded.cut else answer

    def stream(self, encoded: Encoded) -> Iterator[str]:
        """What a model of ``generation`` writes, as soon as nothing can change it any more.

        The parts together are the answer's ``text``; the last one is empty, a ``writing.Ending``
        with the whole ``answer``. The model computes only while the next part is
        waited for; who stops asking ends it. Other threads may compute in between, and need not
        wait long: after ``streams.TURN_TOKENS`` tokens or ``TURN_S`` seconds without a finished
        word a part is "".

        Raises:
            ArgumentError: the task writes no text, or several at once are asked for.
            NotFinite: as ``decode``, while it is written.
        """
        return self.task.stream(encoded)

    def attributions(
        self,
        record: Mapping[str, Any] | str,
        /,
        *,
        method: str = GRADIENT,
        target: str | int | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """How much each token of a record counts for a number behind its answer.

        The number is the logit of a label (text-classification), of a word's label
        (token-classification), of a choice (multiple-choice), or those of the best answer's start
        and end together (question-answering). Of windows it is their weighted mean.

        Args:
            method: "gradient_x_input": of the word embeddings, summed over their axis.
                "integrated_gradients": by captum, which must be installed, from a text of <pad> up
                to this one; the scores sum up to what both numbers differ by.
            target: a label, the number of a word or of a choice, counted from 0; by default that of
                the answer, and of token-classification the first word whose label is not O.
            parameters: of the task.

        Returns:
            What is explained (``label``, ``choice`` or ``answer``), ``method``, ``value`` (the
            number; with integrated gradients ``baseline_value`` too), and ``tokens``, each with
            ``token``, ``field``, ``begin`` and ``end`` (its characters in that field of the record;
            of given words, their places) and ``score``. <sep> and <cls> have no characters: they
            begin and end where the text before them ends.

        Raises:
            ArgumentError: a record, a parameter, a method or a target that cannot be used, captum
                is not installed, or the record is read through memory.
            NotFinite: the model computed values that are no numbers.
        """
        encoded = self.encode(record, **parameters)
        results = self._results(encoded.pieces)
        if not all(map(is_finite, results)):
            raise NotFinite("the model computed values that are no numbers")
        with self.task.computing:
            return attributions(self.task, encoded, results, method, target)


def is_finite(result: Any) -> bool:
    """Whether all numbers of a piece's result are; a tensor, or a mapping of some."""
    if isinstance(result, Mapping):
        return all(map(is_finite, result.values()))
    return not isinstance(result, torch.Tensor) or bool(result.isfinite().all())


def task_of(name: str | None, config: Any, model: str) -> type[Task]:
    """The task of a checkpoint.

    Raises:
        ArgumentError: there is no such task, or the checkpoint has no head for it.
    """
    heads = config.architectures or []
    if name is None:
        found = [task for task in TASKS.values() if set(heads) & set(task.architectures)]
        if not found:
            raise ArgumentError(
                f"{model} is an {heads[0] if heads else 'XLNet of no class'}, which answers none "
                f"of the tasks {', '.join(TASKS)}: name one"
            )
        return found[0]
    if name not in TASKS:
        raise ArgumentError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    task = TASKS[name]
    if "XLNetModel" not in task.architectures and not set(heads) & set(task.architectures):
        raise ArgumentError(
            f"{model} is an {heads[0] if heads else 'XLNet of no class'}, and {name} needs "
            f"{' or '.join(task.architectures)}"
        )
    return task
