"""A label for each word of a text, and entities where the labels are chunk tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.pieces import Encoded, Piece
from xlnet_fast.predict.tasks.base import Part, shown, text_field, unicode_text
from xlnet_fast.predict.tasks.texts import Bounds, TextTask
from xlnet_fast.predict.windows import window_bounds
from xlnet_fast.train.finetune.chunks import entities, has_entities
from xlnet_fast.train.finetune.sequences import coded_words

_WORD = re.compile(r"\S+")
_OUTSIDE = "O"


class TokenClassification(TextTask):
    """A word's first piece has its label, as in fine-tuning; words are given, or parted by blanks.

    Of a long text each word is read in the window that has the most text beside the word, on the
    side where it has less; what ends with the text is not less. Through memory, each is read in its
    own segment, and sees all of the text before, but only what is left of the segment behind it.
    """

    name = "token-classification"
    architectures = ("XLNetForTokenClassification",)
    optional: ClassVar = {}
    instead: ClassVar = {"tokens": "list of texts"}

    def pieces(
        self, record: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> tuple[list[Piece], bool]:
        """``words`` of the notes: those it has the labels of; ``places``: their first pieces."""
        coded = self._coded([word for word, _, _ in _words(record)])
        ids, of_words = coded["input_ids"], coded.word_ids()
        firsts = [i for i, word in enumerate(of_words) if i == 0 or word != of_words[i - 1]]
        reading, room = self.reading, self.reading.max_length - 2
        bounds = [(0, len(ids))]
        cut = len(ids) > room and reading.long == "truncate"
        if cut:
            bounds = [(0, room)]
        elif len(ids) > room and reading.long == "window":
            bounds = window_bounds(len(ids), room, reading.stride)
        owners = {i: _owner(bounds, i, len(ids)) for i in firsts}
        pieces = []
        for number, window in enumerate(bounds):
            own = [i for i in firsts if owners[i] == number]
            notes: dict[str, Any] = {
                "words": [of_words[i] for i in own],
                "places": [i - window[0] for i in own],
            }
            pieces.append(self.piece(ids, None, window, **notes))
        return pieces, cut

    def run(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Logits of the piece's words, (words, labels), in fp32."""
        parts = [output.logits.float() for output, _ in self.outputs(pieces, last=False)]
        logits = torch.cat(parts, 1)
        return [
            row[torch.tensor(piece.notes["places"], dtype=torch.long) + len(row) - len(piece)].cpu()
            for row, piece in zip(logits, pieces, strict=True)
        ]

    def decode(self, encoded: Encoded, results: Sequence[Tensor]) -> dict[str, Any]:
        """``words``, each with ``text``, ``label``, ``score``, ``begin`` and ``end``; ``entities``.

        Entities, each with ``type``, ``text``, ``score`` (the mean of its words'), ``begin`` and
        ``end``, only where the labels are chunk tags. Begin and end are characters of a ``text``,
        and of given ``tokens`` the places of words; the end is the first that is outside.
        """
        given, names = _words(encoded.record), self.model.config.id2label
        found = []
        for piece, result in zip(encoded.pieces, results, strict=True):
            best = result.softmax(-1).max(-1)
            rows = (piece.notes["words"], best.indices.tolist(), best.values.tolist())
            found += list(zip(*rows, strict=True))
        words = [
            {"text": given[i][0], "label": names[label], "score": score, "begin": given[i][1],
             "end": given[i][2]}
            for i, label, score in found
        ]  # fmt: skip
        if not has_entities(list(names.values())):
            return {"words": words}
        return {"words": words, "entities": _entities(words, encoded.record.get("text"))}

    def explained(
        self, encoded: Encoded, results: Sequence[Any], target: str | int | None
    ) -> tuple[dict[str, Any], list[Part]]:
        """The logit of a word's label: that of number ``target``, counted from 0.

        By default the first word whose label is not O, or the first word.
        """
        names = self.model.config.id2label
        labels: dict[int, tuple[Piece, int, int]] = {}
        for piece, result in zip(encoded.pieces, results, strict=True):
            rows = (piece.notes["words"], piece.notes["places"], result.argmax(-1).tolist())
            labels |= {word: (piece, at, label) for word, at, label in zip(*rows, strict=True)}
        if target is None:
            inside = (word for word, (_, _, label) in labels.items() if names[label] != _OUTSIDE)
            target = next(inside, next(iter(labels)))
        if isinstance(target, (bool, str)) or target not in labels:
            raise ArgumentError(
                f"target is {shown(target)}, expected the number of a word, 0 to {max(labels)}"
            )
        piece, place, label = labels[target]

        def value(embeddings: Tensor, inputs: dict[str, Tensor]) -> Tensor:
            logits: Tensor = self.model(inputs_embeds=embeddings, **inputs).logits
            return logits[:, place, label]

        what = {"label": names[label], "word": target, "text": _words(encoded.record)[target][0]}
        return what, [Part(piece, 1.0, value)]

    def tokens(self, encoded: Encoded, piece: Piece) -> list[tuple[str, int, int]]:
        """The characters of a text, and places of given words."""
        given, (part,) = _words(encoded.record), piece.notes["parts"]
        coded = self._coded([word for word, _, _ in given], return_offsets_mapping=True)
        found = []
        for place in range(*part):
            word, begin, end = given[coded.word_ids()[place]]
            if "tokens" not in encoded.record:  # the <unk> of a word may be longer than the word
                begin, end = (begin + min(x, len(word)) for x in coded["offset_mapping"][place])
            found.append((self._field(encoded), begin, end))
        last = (self._field(encoded), found[-1][2], found[-1][2])
        return [*found, last, last]

    def _coded(self, words: list[str], **settings: Any) -> Any:
        with self._tokenizing:
            return coded_words(self.tokenizer, words, add_special_tokens=False, **settings)

    @staticmethod
    def _field(encoded: Encoded) -> str:
        return "tokens" if "tokens" in encoded.record else "text"


def _words(record: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """The words of a record, each with where it begins and ends."""
    if "tokens" not in record:
        text = text_field(record, "text")
        return [(match[0], match.start(), match.end()) for match in _WORD.finditer(text)]
    tokens = record["tokens"]
    if not isinstance(tokens, (list, tuple)) or not tokens:
        raise ArgumentError(f"tokens is {shown(tokens)}, expected a list of words")
    # An empty word, as data may have one, becomes <unk>.
    return [(unicode_text(word, f"tokens[{i}]"), i, i + 1) for i, word in enumerate(tokens)]


def _owner(bounds: Sequence[Bounds], place: int, length: int) -> int:
    """Which window a token is read in; -1 if none has it.

    bounds: of the windows, in a text of ``length`` tokens.
    """
    best, found = -1, -1
    for number, (begin, end) in enumerate(bounds):
        if not begin <= place < end:
            continue
        before = place - begin if begin else length
        behind = end - 1 - place if end < length else length
        if min(before, behind) > best:
            best, found = min(before, behind), number
    return found


def _entities(words: Sequence[Mapping[str, Any]], text: str | None) -> list[dict[str, Any]]:
    """The entities of words, from their labels; ``text``: where the words are of one."""
    found = []
    spans = entities([word["label"] for word in words])
    for kind, first, last in sorted(spans, key=lambda span: span[1:]):
        inside = words[first : last + 1]
        begin, end = inside[0]["begin"], inside[-1]["end"]
        whole = " ".join(word["text"] for word in inside) if text is None else text[begin:end]
        score = sum(word["score"] for word in inside) / len(inside)
        found.append({"type": kind, "text": whole, "score": score, "begin": begin, "end": end})
    return found
