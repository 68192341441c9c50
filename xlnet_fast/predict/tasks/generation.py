"""Text that goes on from a prompt."""

from __future__ import annotations

import itertools
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from xlnet_fast.errors import ArgumentError, NotFinite
from xlnet_fast.generate.options import GenerateOptions
from xlnet_fast.generate.prompts import Prompt, encode
from xlnet_fast.generate.run import Text, write
from xlnet_fast.predict.pieces import Encoded, Piece
from xlnet_fast.predict.streams import Draws, Handover, in_turns
from xlnet_fast.predict.tasks.base import Parameter, Task, text_field, unicode_text
from xlnet_fast.predict.writing import AllFinite, Ending, Interruption, Stops, Words, cut_at

_OF_SAMPLING = ("temperature", "top_k", "top_p", "seed")
_CHOOSING = ("temperature", "top_k", "top_p", "repetition_penalty")
_serial = itertools.count()


class Generation(Task):
    """By Hugging Face's ``generate``. A prompt is read without the <sep> and <cls> of a text.

    Prompts with the same settings are written side by side, which changes nothing; what is drawn
    is drawn for each prompt by itself, so that it depends on nothing but its seed. Long prompts are
    read through memory, or lose their beginning; windows make no text.
    """

    name = "generation"
    architectures = ("XLNetLMHeadModel",)
    required: ClassVar = {"text": "text"}
    optional: ClassVar = {"prefix": "text"}
    parameters: ClassVar = {
        "max_new_tokens": Parameter(50, int, "most tokens to write", 1),
        "do_sample": Parameter(False, bool, "draw tokens; else the likeliest is taken"),
        # Less would divide logits into what is no number; without do_sample the likeliest is taken.
        "temperature": Parameter(None, float, "above 1: more even chances", 1e-3),
        "top_k": Parameter(None, int, "draw among the likeliest so many, 0: all", 0),
        "top_p": Parameter(None, float, "draw among these with this mass", 1e-6, 1),
        "seed": Parameter(None, int, "of what is drawn, another each time", 0, 2**63 - 1),
        "num_beams": Parameter(1, int, "beams of the search", 1),
        "num_return_sequences": Parameter(1, int, "texts", 1),
        "repetition_penalty": Parameter(None, float, "above 1: against repeating", 1e-3),
        "stop": Parameter(None, str, "texts that end it, and are left out", many=True),
    }

    def pieces(
        self, record: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> tuple[list[Piece], bool]:
        """One; ``prompt`` of its notes. Only prompts of equal settings share a group."""
        options = _options(parameters)
        prefix = None
        if record.get("prefix") not in (None, ""):
            prefix = unicode_text(record["prefix"], "prefix")
        text = text_field(record, "text")
        with self._tokenizing:
            prompt = encode(self.tokenizer, text, prefix)
        prompt, cut = self._fitting(prompt)
        kept = self.transformer.mem_len
        if kept and len(prompt.ids) > kept:
            warnings.warn(
                f"{self.name}: the model remembers {kept} tokens (mem_len), and there are longer "
                "prompts: what comes before these is forgotten as the text is written",
                stacklevel=2,
            )
        group: tuple[Any, ...] = (options, parameters["stop"])
        seed = parameters["seed"]
        if parameters["do_sample"]:
            seed = secrets.randbits(32) if seed is None else seed
            group = (*group, next(_serial))
        copies = max(parameters["num_beams"], parameters["num_return_sequences"])
        tokens = copies * (len(prompt.ids) + parameters["max_new_tokens"])
        notes = {"prompt": prompt, "seed": seed, "options": options, "stop": parameters["stop"]}
        segments = [0] * len(prompt.ids)
        return [Piece(prompt.ids, segments, notes, group, tokens - len(prompt.ids))], cut

    def _fitting(self, prompt: Prompt) -> tuple[Prompt, bool]:
        """The prompt, without its beginning where it is cut, and whether it is."""
        reading, tokens = self.reading, len(prompt.ids)
        if tokens <= reading.max_length or reading.long == "memory":
            return prompt, False
        if reading.long == "window":
            raise ArgumentError(
                f"the prompt is {tokens} pieces long, more than max_length {reading.max_length}, "
                "and windows make no text: long must be 'memory' or 'truncate', or max_length more"
            )
        room = reading.max_length - prompt.hidden
        if room < 1:
            raise ArgumentError(
                f"prefix is {prompt.hidden} pieces long and leaves no room for the prompt in "
                f"max_length {reading.max_length}"
            )
        own = prompt.ids[prompt.hidden :][-room:]
        return Prompt(prompt.text, [*prompt.ids[: prompt.hidden], *own], prompt.hidden), True

    def run(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """``texts`` of each prompt; ``finite``: 0, or NaN where the model's values were."""
        return self._run(pieces)

    def run_unless(self, pieces: Sequence[Piece], interrupted: Callable[[], bool]) -> list[Any]:
        """``run``, in which ``interrupted`` is asked after each token."""
        return self._run(pieces, stopping_criteria=[Interruption(interrupted)])

    def _run(self, pieces: Sequence[Piece], **further: Any) -> list[dict[str, Any]]:
        notes = pieces[0].notes
        finite = AllFinite(len(pieces))
        prompts = [piece.notes["prompt"] for piece in pieces]
        with Draws(notes["seed"], self.model.device):
            texts = self._texts(prompts, notes, finite, **further)
        each = notes["options"].num_return_sequences
        return [
            {"texts": texts[i * each : (i + 1) * each], "finite": value}
            for i, value in enumerate(finite.values())
        ]

    def _texts(
        self, prompts: list[Prompt], notes: Mapping[str, Any], finite: AllFinite, **further: Any
    ) -> list[Text]:
        """By ``generate``."""
        longest = max(len(prompt.ids) for prompt in prompts)
        further["logits_processor"] = [finite]
        if notes["stop"]:
            stops = Stops(self.tokenizer, longest, notes["stop"])
            further["stopping_criteria"] = [*further.get("stopping_criteria", ()), stops]
        options = notes["options"]
        if self.reading.long == "memory":
            options = GenerateOptions(
                **{**vars(options), "segment_length": self.reading.max_length}
            )
        try:
            texts, _ = write(self.model, self.tokenizer, prompts, options, **further)
        except RuntimeError as error:
            # Drawing refuses them, in words of its own.
            if not finite.values().isfinite().all():
                raise NotFinite("the model computed values that are no numbers") from error
            raise
        return texts

    def decode(self, encoded: Encoded, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """``text``, what follows the prompt, ``new_tokens``, and ``ended``: whether by itself.

        An end is the model's own token or one of ``stop``. Also ``seed``, where it is drawn, and
        where several are asked for ``texts``, a list of such answers; the first one is the answer.
        """
        (result,), (piece,) = results, encoded.pieces
        answers = [_answer(text, piece.notes["stop"]) for text in result["texts"]]
        answer = dict(answers[0])
        if piece.notes["seed"] is not None:
            answer["seed"] = piece.notes["seed"]
        return {**answer, "texts": answers} if len(answers) > 1 else answer

    def stream(self, encoded: Encoded) -> Iterator[str]:
        """See :meth:`Predictor.stream`."""
        (piece,) = encoded.pieces
        options = piece.notes["options"]
        if max(options.num_beams, options.num_return_sequences) > 1:
            raise ArgumentError(
                "a stream is of one text as it is written, expected num_beams and "
                "num_return_sequences of 1"
            )
        return in_turns(lambda handover: self._stream(piece, handover), self.computing)

    def _stream(self, piece: Piece, handover: Handover) -> None:
        """Write, and hand over what can no longer change."""
        notes, finite = piece.notes, AllFinite(1)
        words = Words(self.tokenizer, notes["stop"] or (), handover.give, finite)
        with Draws(notes["seed"], self.model.device) as draws, torch.no_grad():
            handover.draws = draws
            further = {"streamer": words, "stopping_criteria": [handover]}
            (text,) = self._texts([notes["prompt"]], notes, finite, **further)
        if not handover.stopped:
            answer = _answer(text, notes["stop"])
            words.finish(answer["text"])
            drawn = {} if notes["seed"] is None else {"seed": notes["seed"]}
            handover.give(Ending.of({**answer, **drawn}))


def _options(parameters: Mapping[str, Any]) -> GenerateOptions:
    """The settings of a generation.

    Raises:
        ArgumentError: some do not go together.
    """
    sample, beams = parameters["do_sample"], parameters["num_beams"]
    if not sample:
        for name in _OF_SAMPLING:
            if parameters[name] is not None:
                raise ArgumentError(f"{name} is of sampling, expected do_sample true with it")
    texts = parameters["num_return_sequences"]
    if texts > beams and (beams > 1 or not sample):
        raise ArgumentError(
            f"num_return_sequences is {texts}, expected at most num_beams, {beams}, or do_sample "
            "true without beams"
        )
    if "" in (parameters["stop"] or ()):
        raise ArgumentError("stop has an empty text, expected texts that end what is written")
    return GenerateOptions(
        max_new_tokens=parameters["max_new_tokens"], sample=sample, num_beams=beams,
        num_return_sequences=texts,
        **{name: parameters[name] for name in _CHOOSING},
    )  # fmt: skip


def _answer(text: Text, stop: Sequence[str] | None) -> dict[str, Any]:
    """What was written, without what ended it."""
    kept = cut_at(text.text, stop or ())
    ended = text.ended or len(kept) < len(text.text)
    return {"text": kept, "new_tokens": text.new_tokens, "ended": ended}
