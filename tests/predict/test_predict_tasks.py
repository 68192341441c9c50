"""Answers about texts, words and choices: those of Hugging Face's models and of fine-tuning."""

from __future__ import annotations

import datasets
import pytest
import torch
from tiny_predictors import (
    CLASSES,
    LONG,
    TAGS,
    TEXT,
    folder_of,
    inputs_of,
    labelled,
    numbers,
    one_by_one,
    plain,
    predictor,
    words,
)

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import FinetuneOptions
from xlnet_fast.train.finetune.model import run_tokenizer
from xlnet_fast.train.finetune.multiple_choice import MultipleChoice
from xlnet_fast.train.finetune.text_classification import TextClassification
from xlnet_fast.train.finetune.token_classification import TokenClassification

TEXTS = ("a class", "the value of", TEXT, LONG, "zebra ⚡ \u200b the")
SENTENCES = [{"text": text} for text in TEXTS]
PAIRS = [*SENTENCES, {"text": LONG, "text_pair": "a value"}, {"text": "a", "text_pair": "the"}]
CHOICES = [
    {"passage": TEXT, "choices": ["a value", "an object of this class"], "question": "it is _ ."},
    {"passage": LONG, "choices": ["a value", "an object", "none"]},
    {"passage": "a class", "choices": ["a value", "a"], "question": "is it"},
]
GIVEN = [{"tokens": ["The", "", "\u200b", "import", "yield"]}, {"tokens": TEXT.split()}]
CASES = {
    "text": (labelled, ("XLNetForSequenceClassification", CLASSES), PAIRS),
    "words": (labelled, ("XLNetForTokenClassification", TAGS), [*SENTENCES, *GIVEN]),
    "choices": (folder_of, ("XLNetForMultipleChoice",), CHOICES),
    "embeddings": (folder_of, ("XLNetModel",), SENTENCES),
}


def case(name, **reading):
    make, arguments, records = CASES[name]
    folder = make(*arguments)
    return folder, predictor(folder, **reading), records


@pytest.mark.parametrize("long", ["window", "memory", "truncate"])
@pytest.mark.parametrize("name", CASES)
def test_answers_do_not_depend_on_the_batch(name, long):
    _, answers, records = case(name, long=long)
    together, alone = answers(records), one_by_one(answers, records)
    assert words(together) == words(alone)
    assert list(numbers(together)) == pytest.approx(list(numbers(alone)), rel=1e-6, abs=1e-6)
    cut = [answer.get("cut", False) for answer in together]
    assert any(cut) == (long == "truncate")
    assert not all(cut)


def hf_results(name, model, piece):
    """What HF's own model gives for a piece, as ``run`` does."""
    inputs = inputs_of(piece)
    if name == "choices":
        inputs = {key: value[:, None] for key, value in inputs.items()}
    with torch.no_grad():
        output = model(**inputs)
    if name == "embeddings":
        hidden = output.last_hidden_state[0]
        return torch.stack([hidden[:-2].mean(0), hidden[-1]])
    return output.logits[0][piece.notes["places"]] if name == "words" else output.logits[0]


@pytest.mark.parametrize("name", CASES)
def test_windows_give_what_hugging_faces_model_gives(name):
    folder, answers, records = case(name)
    model = plain(folder)
    pieces = [piece for record in records for piece in answers.encode(record).pieces]
    assert len(pieces) > len(records)
    for piece, result in zip(pieces, answers.run(pieces), strict=True):
        torch.testing.assert_close(result, hf_results(name, model, piece), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["text", "words", "embeddings"])
def test_memory_gives_what_hugging_faces_model_gives(name):
    """Segment by segment, the first one short."""
    folder, answers, _ = case(name, long="memory")
    (piece,) = answers.encode(LONG).pieces
    inputs, model = inputs_of(piece), plain(folder)
    outputs, mems = [], None
    first = len(piece) % 48 or 48
    for begin, end in [(0, first), *((i, i + 48) for i in range(first, len(piece), 48))]:
        part = {key: value[:, begin:end] for key, value in inputs.items()}
        with torch.no_grad():
            output = model(**part, mems=mems, use_mems=True)
        mems = output.mems
        outputs.append(output)
    assert len(outputs) > 2
    (found,) = answers.run([piece])
    if name == "embeddings":
        hidden = torch.cat([output.last_hidden_state[0] for output in outputs])
        expected = torch.stack([hidden[:-2].mean(0), hidden[-1]])
    elif name == "words":
        expected = torch.cat([output.logits[0] for output in outputs])[piece.notes["places"]]
    else:
        expected = outputs[-1].logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --- the same as fine-tuning ---------------------------------------------------------------------


def finetuned(kind, name, folder, rows, labels=()):
    """The predictions that ``finetune`` writes of rows, in batches of three."""
    options = FinetuneOptions(
        task=name, model=str(folder), train="t", output=folder / "out", max_length=48, truncate=True
    )
    task = kind(options, run_tokenizer(options))
    task.labels = list(labels)
    task.number_of_choices = 2
    split = task.split("test", "test.json", datasets.Dataset.from_list(rows))
    split.features = task.encode(split)
    model, results, marks = plain(folder), [], []
    for i in range(0, len(rows), 3):
        batch = task.collate([split.features[k] for k in range(i, min(i + 3, len(rows)))])
        with torch.no_grad():
            outputs = model(**task.model_inputs(batch, training=False))
        results.append(task.predictions(outputs, batch))
        marks.append(batch.get("labels"))
    if kind is not TokenClassification:
        return task.report(split, torch.cat([logits for (logits,) in results]).numpy(), None).rows
    rows = []
    for (predicted, losses), labels in zip(results, marks, strict=True):
        rows += task.report(split, (predicted.numpy(), losses.numpy()), labels.numpy()).rows
    return rows


def test_texts_are_classified_as_fine_tuning_does():
    folder, answers, records = case("text", long="truncate")
    pairs = [{"text_pair": LONG, **record} for record in records]
    for rows in (SENTENCES, pairs):
        expected = finetuned(
            TextClassification, "text-classification", folder, rows, CLASSES.values()
        )
        found = answers(rows)
        assert [answer["label"] for answer in found] == [row["prediction"] for row in expected]
        assert [answer["score"] for answer in found] == pytest.approx(
            [row["probability"] for row in expected], abs=2e-6
        )
    assert len({row["prediction"] for row in expected}) > 1


def test_words_are_labelled_as_fine_tuning_does():
    folder, answers, _ = case("words", long="truncate")
    rows = [*GIVEN, *({"tokens": text.split()} for text in TEXTS)]
    expected = finetuned(TokenClassification, "token-classification", folder, rows, TAGS.values())
    for row, answer in zip(rows, answers(rows), strict=True):
        tags = expected.pop(0)["prediction"]
        assert [word["label"] for word in answer["words"]] == tags
        assert ("cut" in answer) == (len(tags) < len(row["tokens"]))
    texts = answers([{"text": " ".join(row["tokens"])} for row in rows[2:]])
    for one, other in zip(texts, answers(rows[2:]), strict=True):
        assert list(numbers([word["score"] for word in one["words"]])) == pytest.approx(
            [word["score"] for word in other["words"]], abs=1e-6
        )


def test_choices_are_those_of_fine_tuning():
    folder, answers, _ = case("choices", long="truncate")
    records = [CHOICES[0], CHOICES[2], {**CHOICES[0], "passage": LONG}]
    rows = [
        {"context": r["passage"], "question": r["question"], "choices": r["choices"]}
        for r in records
    ]
    expected = finetuned(MultipleChoice, "multiple-choice", folder, rows)
    found = answers(records)
    assert [answer["choice"] for answer in found] == [row["prediction"] for row in expected]
    assert [answer["score"] for answer in found] == pytest.approx(
        [row["probability"] for row in expected], abs=2e-6
    )
    assert found[2]["cut"] is True
    for answer, record in zip(found, records, strict=True):
        assert answer["text"] == record["choices"][answer["choice"]]
        assert sum(answer["scores"]) == pytest.approx(1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_cut_on_the_tokenizers_side(side):
    _, answers, _ = case("text", long="truncate")
    tokenizer = answers.task.tokenizer
    tokenizer.truncation_side = side
    for texts in ((LONG,), (LONG, "a value"), ("a value", LONG), (LONG, TEXT), (TEXT, LONG)):
        record = dict(zip(("text", "text_pair"), texts, strict=False))
        encoded = answers.encode(record)
        assert encoded.cut
        (piece,) = encoded.pieces
        coded = tokenizer(*texts, truncation=True, max_length=48)
        assert piece.input_ids == coded["input_ids"]
        assert piece.token_type_ids == coded["token_type_ids"]


# --- windows, weights, entities ------------------------------------------------------------------


def test_windows_of_choices_are_the_same_and_count_by_their_tokens():
    _, answers, _ = case("choices")
    encoded = answers.encode(CHOICES[1])
    parts = [piece.notes["parts"][0] for piece in encoded.pieces]
    each = len(parts) // 3
    assert each > 1
    assert parts[:each] == parts[each : 2 * each] == parts[2 * each :]
    results = answers.run(encoded.pieces)
    logits = [
        sum(float(r) * len(p) for r, p in rows) / sum(len(p) for _, p in rows)
        for rows in (
            list(zip(results, encoded.pieces, strict=True))[i : i + each]
            for i in range(0, 3 * each, each)
        )
    ]
    expected = torch.tensor(logits).softmax(0).tolist()
    assert answers(CHOICES[1])["scores"] == pytest.approx(expected, abs=1e-6)


def test_words_and_entities_are_where_the_text_has_them():
    _, answers, _ = case("words")
    for record in [*SENTENCES, *GIVEN]:
        answer = answers(record)
        given = record.get("tokens") or record["text"].split()
        assert [word["text"] for word in answer["words"]] == given
        if "text" in record:
            text = record["text"]
            for part in (*answer["words"], *answer["entities"]):
                assert text[part["begin"] : part["end"]] == part["text"]
        else:
            for part in answer["entities"]:
                inside = given[part["begin"] : part["end"]]
                assert " ".join(inside) == part["text"]
    answer = answers(LONG)
    assert answer["entities"]
    for entity in answer["entities"]:
        inside = [
            word for word in answer["words"]
            if entity["begin"] <= word["begin"] < entity["end"]
        ]  # fmt: skip
        assert inside[0]["label"].endswith(entity["type"])
        mean = sum(word["score"] for word in inside) / len(inside)
        assert entity["score"] == pytest.approx(mean)


def test_labels_that_are_no_chunk_tags_make_no_entities():
    answers = predictor(labelled("XLNetForTokenClassification", {0: "NOUN", 1: "VERB"}))
    assert set(answers("a class")) == {"words"}


def test_a_vector_is_normalized_and_of_every_checkpoint():
    _, answers, _ = case("embeddings")
    for pooling in ("mean", "cls"):
        one, unit = answers(LONG, pooling=pooling), answers(LONG, pooling=pooling, normalize=True)
        vector, direction = (torch.tensor(answer["embedding"]) for answer in (one, unit))
        torch.testing.assert_close(vector / vector.norm(), direction)
    assert answers(TEXT)["embedding"] != answers(TEXT, pooling="cls")["embedding"]
    for other in (labelled("XLNetForTokenClassification", TAGS), folder_of("XLNetLMHeadModel")):
        found = predictor(other, task="embeddings")("a class")["embedding"]
        model = plain(other).transformer
        (piece,) = answers.encode("a class").pieces
        with torch.no_grad():
            hidden = model(**inputs_of(piece)).last_hidden_state[0, :-2].mean(0)
        assert found == pytest.approx(hidden.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("words", {"text": "a", "tokens": ["a"]}, "has both text and tokens"),
        ("words", {}, r"has no text; fields of token-classification: text, tokens \(instead\)"),
        ("words", {"tokens": []}, r"tokens is \[\], expected a list of words"),
        ("words", {"tokens": "a b"}, "tokens is 'a b', expected a list of words"),
        ("words", {"tokens": ["a", 3]}, r"tokens\[1\] is of type int"),
        ("words", {"text": "a\ud800"}, "lone surrogate at character 1"),
        ("choices", {"passage": "a", "choices": ["a"]}, "a list of 2 or more texts"),
        ("choices", {"passage": "a", "choices": ["a", " "]}, r"choices\[1\] is empty"),
        ("choices", {"passage": "a"}, "has no choices; fields of multiple-choice: passage, cho"),
        ("choices", {"passage": LONG, "choices": ["a", TEXT]}, "max_length must be at least"),
        ("embeddings", {"text": "\u200b"}, "comes to no token"),
        ("embeddings", {"text": "a", "text_pair": "b"}, "an unknown field 'text_pair'"),
        ("text", ["a"], "a record is of type list, expected a mapping"),
    ],
)
def test_records_that_are_refused(name, record, message):
    _, answers, _ = case(name)
    with pytest.raises(ArgumentError, match=message):
        answers.encode(record)
