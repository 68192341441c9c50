"""Records answered block by block: those of one are encoded, batched by length and answered.

Which records share a batch depends on the input alone, so that a run that was stopped in the midst
of a block computes the same batches again, and gets the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.predict.answer_files import Answers
from xlnet_fast.predict.layout import Layout
from xlnet_fast.predict.pieces import Encoded, Piece, batches_by_length
from xlnet_fast.predict.predictor import Predictor
from xlnet_fast.predict.record_progress import RecordProgress
from xlnet_fast.predict.records import Row, Rows
from xlnet_fast.predict.stopping import StopOnSignal

BLOCK_BATCHES = 64
"""Batches of tokens that are sorted by length together, and held in memory."""
BLOCK_RECORDS = 4096

_Block = list[tuple[Row, Encoded | str]]  # encoded, or why that cannot be


@dataclass
class Tally:
    """What a run did.

    Attributes:
        records: that it answered. bad: of them, those whose answer is an error.
        tokens: of batches. padded: tokens and padding of them. seconds: that all took.
        finished: whether all records have an answer now.
    """

    records: int = 0
    bad: int = 0
    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0
    finished: bool = False

    def metrics(self) -> dict[str, float]:
        """As :class:`PredictResult` has them, without the memory."""
        seconds = max(self.seconds, 1e-9)
        return {
            "records": self.records,
            **({"bad_records": self.bad} if self.bad else {}),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "records_per_second": self.records / seconds,
            "tokens_per_second": self.tokens / seconds,
            "padding": 1 - self.tokens / self.padded if self.padded else 0.0,
        }


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A run over the records of an input.

    Attributes:
        predictor, layout, rows: what answers, how a record is made of a row, the rows.
        parameters: of all answers.
        token_budget: of a batch.
        skip_bad: whether a bad record's answer is its error; else it ends the run.
        stop: asked after each batch.
    """

    predictor: Predictor
    layout: Layout
    rows: Rows
    parameters: Mapping[str, Any]
    token_budget: int
    skip_bad: bool
    stop: StopOnSignal

    def answer(self, answers: Answers, total: int, progress: RecordProgress) -> Tally:
        """Answer what has no answer yet of ``total`` records, until the end or a signal.

        Raises:
            ArgumentError: a record is bad, or the input has changed.
            XLNetFastError: a record's answer is none, or the answers could not be written.
        """
        tally, begin = Tally(), time.perf_counter()
        try:
            for block in self._blocks(answers.done):
                if self._answer_block(block, answers, progress, tally):
                    answers.end_block(block[-1][0].number)
                if self.stop.signal is not None:
                    break
            if answers.done == total:
                answers.finish()
                tally.finished = True
            elif self.stop.signal is not None:
                answers.stop()
            else:
                raise ArgumentError(
                    f"{self.rows.name} had {total:,} records and now has {answers.done:,}: it must "
                    "stay as it is while it is read"
                )
        except BaseException:
            answers.stop()
            raise
        finally:
            tally.seconds = time.perf_counter() - begin
        return tally

    def _blocks(self, done: int) -> Iterator[_Block]:
        """The records after the first ``done``, encoded; after a signal there are no more.

        Nor a block that would end elsewhere than in a run that nobody stops.
        """
        block: _Block = []
        tokens = 0
        for row in self.rows:
            if self.stop.signal is not None:
                return
            if row.number <= done:
                continue
            encoded = self._encoded(row)
            block.append((row, encoded))
            if isinstance(encoded, Encoded):
                tokens += sum(len(piece) for piece in encoded.pieces)
            if tokens >= BLOCK_BATCHES * self.token_budget or len(block) == BLOCK_RECORDS:
                yield block
                block, tokens = [], 0
        if block:
            yield block

    def _encoded(self, row: Row) -> Encoded | str:
        problem = self.layout.problem(row)
        if not problem:
            try:
                return self.predictor.encode(self.layout.record(row), **self.parameters)
            except ArgumentError as error:
                problem = str(error)
        if not self.skip_bad:
            raise ArgumentError(self._told(row, problem))
        return problem

    def _told(self, row: Row, problem: str) -> str:
        return f"{row.place} of {self.rows.name}: {problem}; --skip-bad answers with an error there"

    def _answer_block(
        self, block: _Block, answers: Answers, progress: RecordProgress, tally: Tally
    ) -> bool:
        """All batches that a record without an answer has a part in; or those before a signal.

        Returns:
            Whether all of the block's records have an answer.
        """
        before = tally.records
        for row, encoded in block:
            if isinstance(encoded, str) and row.number not in answers.answered:
                self._add(answers, row, {"error": encoded}, tally)
        answers.flush()
        progress.advance(tally.records - before)
        pieces: list[Piece] = []
        owners: list[int] = []  # of each piece its record's place in the block
        missing: dict[int, dict[int, Any]] = {}  # results of the records without an answer
        for place, (row, encoded) in enumerate(block):
            if isinstance(encoded, Encoded):
                if row.number not in answers.answered:
                    missing[place] = {}
                pieces += encoded.pieces
                owners += [place] * len(encoded.pieces)
        for batch in batches_by_length(pieces, self.token_budget):
            if self.stop.signal is not None:
                return not missing
            if not any(owners[i] in missing for i in batch):
                continue
            before = tally.records
            found = self._results([pieces[i] for i in batch])
            tally.tokens += sum(len(pieces[i]) for i in batch)
            tally.padded += len(batch) * max(len(pieces[i]) for i in batch)
            for i, result in zip(batch, found, strict=True):
                if (place := owners[i]) in missing:
                    missing[place][i] = result
                    row, encoded = block[place]
                    assert isinstance(encoded, Encoded)
                    if len(missing[place]) == len(encoded.pieces):
                        results = missing.pop(place)
                        self._decode(
                            answers, row, encoded, [results[k] for k in sorted(results)], tally
                        )
            answers.flush()
            progress.advance(tally.records - before)
        return True

    def _results(self, pieces: Sequence[Piece]) -> list[Any]:
        """The result of each piece, or the error of one that the model cannot compute."""
        try:
            return self.predictor.run(pieces)
        except torch.OutOfMemoryError as error:
            tokens = len(pieces) * max(len(piece) for piece in pieces)
            raise XLNetFastError(
                f"the device has no memory for a batch of {tokens} tokens, expected a smaller "
                "--batch-tokens, or --max-length if a single text is as long"
            ) from error
        except XLNetFastError as error:
            if len(pieces) == 1:
                return [error]
            return [self._results([piece])[0] for piece in pieces]

    def _decode(
        self, answers: Answers, row: Row, encoded: Encoded, results: list[Any], tally: Tally
    ) -> None:
        """Add the answer of a record."""
        problem = next((str(one) for one in results if isinstance(one, XLNetFastError)), "")
        if not problem:
            try:
                self._add(answers, row, self.predictor.decode(encoded, results), tally)
            except XLNetFastError as error:
                problem = str(error)
            except ValueError:
                problem = "the model computed values that are no numbers (another --dtype may do)"
        if problem and not self.skip_bad:
            raise XLNetFastError(self._told(row, problem))
        if problem:
            self._add(answers, row, {"error": problem}, tally)

    def _add(self, answers: Answers, row: Row, answer: Mapping[str, Any], tally: Tally) -> None:
        answers.add(row.number, self.layout.answer(row, answer))
        tally.records += 1
        tally.bad += "error" in answer
