"""The predictor itself: what it loads, threads, precision, values that are no numbers, refusals."""

from __future__ import annotations

import ast
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    plain,
    predictor,
    words,
)

from xlnet_fast.errors import ArgumentError, NotFinite
from xlnet_fast.predict import Predictor
from xlnet_fast.predict.predictor import TASKS, is_finite
from xlnet_fast.predict.tasks.base import Parameter, Reading

ROOT = Path(__file__).resolve().parents[2]
HEADS = {
    "XLNetForSequenceClassification": "text-classification",
    "XLNetForTokenClassification": "token-classification",
    "XLNetForQuestionAnsweringSimple": "question-answering",
    "XLNetForQuestionAnswering": "question-answering",
    "XLNetForMultipleChoice": "multiple-choice",
    "XLNetModel": "embeddings",
    "XLNetLMHeadModel": "generation",
}
RECORDS = {
    "text-classification": {"text": TEXT},
    "token-classification": {"text": TEXT},
    "question-answering": {"question": "is it", "context": TEXT},
    "multiple-choice": {"passage": TEXT, "choices": ["a value", "none"]},
    "embeddings": {"text": TEXT},
    "generation": {"text": "the value of"},
}
TEXTS = ["a class", "the value of", TEXT, LONG] * 4


@pytest.fixture(scope="module")
def classifier():
    return predictor(labelled("XLNetForSequenceClassification", CLASSES))


@pytest.mark.parametrize("architecture", HEADS)
def test_a_checkpoint_has_the_task_of_its_class(architecture):
    settings = {"num_labels": 2} if "Answering" in architecture else {}
    folder = folder_of(architecture, **settings)
    answers = predictor(folder)
    assert answers.task.name == HEADS[architecture]
    assert answers.name == str(folder)
    assert not any(parameter.requires_grad for parameter in answers.task.model.parameters())
    record = RECORDS[answers.task.name]
    assert set(record) <= {*answers.task.required, *answers.task.optional}
    answer = answers(record)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert answers(record) == answer
    assert answers([]) == []


def test_a_class_without_the_head_is_refused(tmp_path):
    folder = folder_of("XLNetLMHeadModel")
    with pytest.raises(ArgumentError, match="is an XLNetLMHeadModel, and multiple-choice needs"):
        Predictor.load(str(folder), task="multiple-choice")
    with pytest.raises(ArgumentError, match="task must be one of text-classification, token-c"):
        Predictor.load(str(folder), task="translation")
    with pytest.raises(ArgumentError, match="dtype must be one of fp32, bf16, fp16"):
        Predictor.load(str(folder), dtype="int8")
    with pytest.raises(ArgumentError, match=r"the folder .* holds no config\.json"):
        Predictor.load(str(tmp_path))


def test_every_task_says_what_its_records_and_parameters_are():
    for name, task in TASKS.items():
        assert task.name == name
        fields = {**task.required, **task.optional, **task.instead}
        assert set(fields.values()) <= {"text", "list of texts"}
        for parameter in task.parameters.values():
            assert parameter.help
            if parameter.default is not None:
                assert parameter.checked("it", parameter.default) == parameter.default


# --- equality ------------------------------------------------------------------------------------


@pytest.mark.parametrize("summary", ["first", "mean", "last"])
def test_other_summaries_do_not_see_padding(summary):
    folder = labelled("XLNetForSequenceClassification", CLASSES, summary_type=summary)
    answers, model = predictor(folder), plain(folder)
    texts = [*TEXTS[:2], "this function returns a string"]
    for text, answer in zip(texts, answers(texts), strict=True):
        (piece,) = answers.encode(text).pieces
        with torch.no_grad():
            likely = model(**inputs_of(piece)).logits[0].softmax(0)
        assert answer["score"] == pytest.approx(likely.max().item(), abs=1e-5)


def test_in_bf16_the_answers_are_near(classifier):
    folder = classifier.name
    half = Predictor.load(folder, dtype="bf16", reading=Reading(max_length=48, stride=8))
    for one, other in zip(half(TEXTS[:3]), classifier(TEXTS[:3]), strict=True):
        for label in CLASSES.values():
            assert one["scores"][label] == pytest.approx(other["scores"][label], abs=0.1)


def test_numbers_and_several_labels():
    number = predictor(labelled("XLNetForSequenceClassification", {0: "stars"}))
    assert set(number(TEXT)) == {"value"}
    several = predictor(
        labelled(
            "XLNetForSequenceClassification", CLASSES, problem_type="multi_label_classification"
        )
    )
    answer = several(TEXT)
    assert answer["labels"] == [name for name, p in answer["scores"].items() if p >= 0.5]
    assert several(TEXT, threshold=0.0)["labels"] == list(answer["scores"])
    assert len(several(TEXT, top_k=1)["scores"]) == 1


# --- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
def test_many_threads_get_the_same_answers(classifier, task):
    answers = classifier
    records = [{"text": text} for text in TEXTS]
    if task == "question-answering":  # its tokenizer is told to cut, and to cut no more
        answers = predictor(folder_of("XLNetForQuestionAnswering", num_labels=2))
        records = [{"question": "is it", "context": text} for text in TEXTS]
    expected = answers(records)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(answers, records))
    assert words(found) == words(expected)
    assert list(numbers(found)) == pytest.approx(list(numbers(expected)), rel=1e-6, abs=1e-6)


def test_one_thread_computes_at_a_time(classifier):
    inside, most = 0, 0

    def enter(*_):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)

    def leave(*_):
        nonlocal inside
        inside -= 1

    hooks = [
        classifier.task.model.register_forward_pre_hook(enter),
        classifier.task.model.register_forward_hook(leave),
    ]
    threads = [threading.Thread(target=classifier, args=(TEXT,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for hook in hooks:
        hook.remove()
    assert most == 1


def test_results_have_no_gradients(classifier):
    with torch.enable_grad():
        for result in classifier.run(classifier.encode(TEXT).pieces):
            assert not result.requires_grad


# --- values that are no numbers ------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [name for name in HEADS if "LM" not in name])
def test_a_poisoned_record_fails_alone(architecture):
    settings = {"num_labels": 2} if "Answering" in architecture else {}
    answers = predictor(folder_of(architecture, **settings))
    record = RECORDS[answers.task.name]
    (field,) = {"text", "context", "passage"} & set(record)
    good, bad = {**record, field: "a class"}, {**record, field: "a class function"}
    ids = [set(answers.encode(one).pieces[0].input_ids) for one in (good, bad)]
    expected = answers(good)
    with torch.no_grad():
        table = answers.task.transformer.word_embedding.weight
        table[(ids[1] - ids[0]).pop()] = float("nan")
    encoded = [answers.encode(one) for one in (good, bad)]
    results = answers.run([piece for one in encoded for piece in one.pieces])
    each = len(encoded[0].pieces)
    found = answers.decode(encoded[0], results[:each])
    assert words(found) == words(expected)
    with pytest.raises(NotFinite):
        answers.decode(encoded[1], results[each:])
    with pytest.raises(NotFinite):
        answers([good, bad])


def test_what_counts_as_numbers():
    assert is_finite({"a": torch.zeros(2), "b": ["text"]})
    assert not is_finite({"a": torch.zeros(2), "b": {"c": torch.tensor(float("inf"))}})


# --- requests that cannot be used ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        (Parameter(1, int, "", 0, 5), 3.0, 3),
        (Parameter(1, float, ""), 3, 3.0),
        (Parameter(None, int, ""), None, None),
        (Parameter(None, str, "", many=True), "a", ("a",)),
        (Parameter(None, str, "", many=True), ["a", "b"], ("a", "b")),
    ],
)
def test_values_become_the_parameters_type(parameter, value, expected):
    found = parameter.checked("it", value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        (Parameter(1, int, ""), True, "it is True, expected a whole number"),
        (Parameter(1, int, ""), 2.5, "it is 2.5, expected a whole number"),
        (Parameter(1, int, ""), "2", "it is '2', expected a whole number"),
        (Parameter(1, int, ""), None, "it is None"),
        (Parameter(1, int, "", 0, 5), 10**4000, "it is a huge number, expected 0 to 5"),
        (Parameter(1.0, float, ""), float("inf"), "it is inf, expected a finite number"),
        (Parameter(1.0, float, ""), 10**400, "it is a huge number, expected a finite number"),
        (Parameter(False, bool, ""), 1, "it is 1, expected true or false"),
        (Parameter("a", str, "", choices=("a", "b")), "c" * 99, r"one of a, b, got 'ccc.*\.\.\."),
        (Parameter("a", str, ""), ["a"], r"it is \['a'\], expected a text"),
    ],
)
def test_values_that_are_refused(parameter, value, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        parameter.checked("it", value)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, r"the record has no text; fields of text-classification: text, text_pair"),
        ({"text": "a", 3: "b"}, "an unknown field 3"),
        ({"text": 3}, "text is of type int, expected a text"),
        ({"text": " \n"}, "text is empty, expected some words"),
        ({"text": "a\udfff"}, "text has a lone surrogate at character 1"),
        (None, "a record is of type NoneType"),
    ],
)
def test_records_that_are_refused(classifier, record, message):
    with pytest.raises(ArgumentError, match=message):
        classifier.encode(record)
    with pytest.raises(ArgumentError, match=f"record 2: .*{message[-20:]}"):
        classifier(["a class", record])


@pytest.fixture(scope="module")
def tagger():
    return predictor(labelled("XLNetForTokenClassification", TAGS))


@pytest.mark.parametrize("text", ["\x00", "\u200b", "⚡", "a" * 5000, "a\n\t\u2028b", "👩‍👩‍👧 é"])
def test_odd_texts_are_answered(classifier, tagger, text):
    answer = classifier(text)
    assert answer["label"] in CLASSES.values()
    answer = tagger(text)
    assert [word["text"] for word in answer["words"]] == text.split()


def test_only_a_writer_streams(classifier):
    with pytest.raises(ArgumentError, match="text-classification writes no text"):
        classifier.stream(classifier.encode("a class"))


def test_nothing_needs_what_training_needs():
    """Modules that serving loads name neither `datasets` nor what metrics are made with."""
    waiting, seen = ["xlnet_fast.predict.predictor"], set()
    while waiting:
        name = waiting.pop()
        path = ROOT.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            heavy = {"datasets", "sklearn", "scipy", "matplotlib", "captum", "accelerate"}
            assert not {one.partition(".")[0] for one in named} & heavy, name
            waiting += [one for one in named if one.startswith("xlnet_fast")]
    assert "xlnet_fast.train.finetune.spans" in seen
