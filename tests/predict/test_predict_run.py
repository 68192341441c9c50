"""Predictions from end to end: the answers, their files, and runs that are stopped or killed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import forked
import pytest
import torch
from rich.console import Console
from tiny_answers import classifier, texts, write_lines

from xlnet_fast.builder.progress import QUIET_S
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.predict import PredictOptions, Predictor, blocks, predict
from xlnet_fast.predict.answer_files import part_of
from xlnet_fast.predict.record_progress import RecordProgress
from xlnet_fast.predict.records import Rows
from xlnet_fast.predict.tasks.base import Reading

COUNT = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Records of mixed lengths, some of them longer than a window."""
    found = [{"id": f"q{i}", "text": text} for i, text in enumerate(texts(COUNT, 40))]
    return write_lines(tmp_path_factory.mktemp("data") / "in.jsonl", found)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of several batches each."""
    monkeypatch.setattr(blocks, "BLOCK_BATCHES", 6)


@pytest.fixture
def options(model, source, tmp_path):
    return PredictOptions(
        model=str(model), input=str(source), output=tmp_path / "out.jsonl", max_length=64,
        batch_tokens=200, set=("top_k=2",),
    )  # fmt: skip


@pytest.fixture
def whole(options):
    """The bytes of a run that nobody stops."""
    predict(dataclasses.replace(options, output=options.output.with_name("whole.jsonl")))
    return options.output.with_name("whole.jsonl").read_bytes()


def answers(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def after_batches(monkeypatch, count: int, act) -> list[int]:
    """Have ``act`` called when so many batches are computed; the sizes of all that are."""
    run, sizes = Predictor.run, []

    def counted(self, pieces):
        sizes.append(len(pieces))
        if len(sizes) == count:
            act()
        return run(self, pieces)

    monkeypatch.setattr(Predictor, "run", counted)
    return sizes


def test_the_answers_are_those_of_the_predictor_in_order(options, model, source):
    result = predict(options)
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    predictor = Predictor.load(str(model), reading=Reading(max_length=64, stride=16))
    found = answers(options.output)
    assert [(answer["row"], answer["id"]) for answer in found] == [
        (i + 1, record["id"]) for i, record in enumerate(records)
    ]
    lengths = []
    for answer, record in zip(found, records, strict=True):
        single = predictor({"text": record["text"]}, top_k=2)
        assert answer["label"] == single["label"]
        assert answer["scores"] == pytest.approx(single["scores"], abs=1e-5)
        lengths += map(len, predictor.encode({"text": record["text"]}).pieces)
    assert result.answered == result.of == result.metrics["records"] == COUNT
    assert result.metrics["tokens"] == sum(lengths)
    assert 0 < result.metrics["padding"] < 0.3
    assert result.stopped_by is None
    assert [path.name for path in options.output.parent.iterdir()] == ["out.jsonl"]


def test_standard_output_gets_each_answer_when_those_before_it_are_out(options, whole):
    lines, told = [], []
    predict(dataclasses.replace(options, output=None), lines.append, told.append)
    assert "".join(line + "\n" for line in lines).encode() == whole
    assert told == [f"60 records of {options.input}: text from text"]
    pipe = options.output.with_name("pipe")
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    predict(dataclasses.replace(options, output=pipe))
    assert reader.communicate()[0] == whole


def test_tables_and_lists(options, whole):
    expected = [json.loads(line) for line in whole.decode().splitlines()]
    listed = options.output.with_suffix(".json")
    predict(dataclasses.replace(options, output=listed))
    assert json.loads(listed.read_text(encoding="utf-8")) == expected
    table = options.output.with_suffix(".csv")
    predict(dataclasses.replace(options, output=table, keep_all=True))
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "row", "id", "input.id", "input.text", "label", "score", "scores.bad", "scores.good",
        "scores.so so",
    ]  # fmt: skip
    for row, answer in zip(rows, expected, strict=True):
        assert (row["row"], row["label"]) == (str(answer["row"]), answer["label"])
        assert float(row["score"]) == answer["score"]
        assert sum(bool(row[f"scores.{name}"]) for name in ("bad", "good", "so so")) == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(options, monkeypatch, suffix, count):
    whole = options.output.with_name(f"whole{suffix}")
    with monkeypatch.context() as patched:
        all_batches = after_batches(patched, 0, None)
        predict(dataclasses.replace(options, output=whole))
    options = dataclasses.replace(options, output=options.output.with_suffix(suffix))
    stop = signal.SIGTERM if count == 4 else signal.SIGINT
    with monkeypatch.context() as patched:
        sizes = after_batches(patched, count, lambda: os.kill(os.getpid(), stop))
        result = predict(options)
    assert len(sizes) == count  # not one more
    assert result.stopped_by == stop
    assert (0 if count == 1 else 1) <= result.answered < COUNT
    assert not options.output.exists()
    with pytest.raises(ArgumentError, match="--resume goes on with it"):
        predict(options)
    with monkeypatch.context() as patched:
        rest = after_batches(patched, 0, None)
        told: list[str] = []
        end = predict(dataclasses.replace(options, resume=True), tell=told.append)
    assert (f"{result.answered} records are answered already" in told) == (count > 1)
    assert end.metrics["records"] == COUNT - result.answered
    assert end.answered == COUNT
    # The first block has 6 batches or 7: what is in a complete one is not computed again.
    assert len(rest) <= len(all_batches) - (6 if count == 8 else 0)
    assert all_batches[-len(rest) :] == rest or count != 8
    assert options.output.read_bytes() == whole.read_bytes()
    assert not part_of(options.output).exists()
    with pytest.raises(ArgumentError, match="is there already: --overwrite replaces it"):
        predict(options)
    predict(dataclasses.replace(options, overwrite=True))
    assert options.output.read_bytes() == whole.read_bytes()


def test_a_signal_between_batches_stops_as_well(options, whole, monkeypatch):
    """While records are encoded, and while answered ones are passed over."""
    resumed = dataclasses.replace(options, resume=True)
    encode, iterate = Predictor.encode, Rows.__iter__
    seen = []

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    def encoding(self, record, **parameters):
        seen.append(record)
        if len(seen) == 40:
            stop()
        return encode(self, record, **parameters)

    def passing(self):
        for row in iterate(self):
            yield row
            if row.number == 2 and passes.pop():
                stop()

    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "encode", encoding)
        result = predict(options)
        assert result.stopped_by == signal.SIGTERM
    passes = [True, False, False]  # from its end: of the survey, the check, the run
    with monkeypatch.context() as patched:
        patched.setattr(Rows, "__iter__", passing)
        again = predict(resumed)
    assert again.stopped_by == signal.SIGTERM
    assert again.answered == result.answered
    assert not options.output.exists()
    predict(resumed)
    assert options.output.read_bytes() == whole


def test_a_signal_after_the_last_batch_changes_nothing(options, whole, monkeypatch):
    sizes = after_batches(monkeypatch, 0, None)
    predict(dataclasses.replace(options, output=options.output.with_name("counted.jsonl")))
    total = len(sizes)
    after_batches(monkeypatch, total, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert predict(options).stopped_by is None
    assert options.output.read_bytes() == whole


def test_an_input_that_changes_while_it_is_read(options, tmp_path, monkeypatch):
    source = write_lines(tmp_path / "grows.jsonl", [{"text": text} for text in texts(5)])
    load = Predictor.load

    def loading(*arguments, **settings):
        write_lines(source, [{"text": "a class"}])
        return load(*arguments, **settings)

    monkeypatch.setattr(Predictor, "load", loading)
    with pytest.raises(ArgumentError, match="had 5 records and now has 1"):
        predict(dataclasses.replace(options, input=str(source)))


def test_every_place_where_a_kill_may_cut_the_file_off(options, whole, monkeypatch):
    """The unfinished file, cut at many bytes, and with a damaged line, ends with the same bytes."""
    with monkeypatch.context() as patched:
        after_batches(patched, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        predict(options)
    part = part_of(options.output)
    content = part.read_bytes()
    assert b'"block_ends"' in content
    resumed = dataclasses.replace(options, resume=True, overwrite=False)
    header = content.index(b"\n") + 1
    cuts = [0, 10, header, header + 1, *range(header + 2, len(content), len(content) // 6)]
    for cut in cuts:
        part.write_bytes(content[:cut])
        predict(resumed)
        assert options.output.read_bytes() == whole, cut
    damaged = bytearray(content)
    damaged[header + 40 : header + 60] = b"\0" * 20  # as a power cut may leave it
    part.write_bytes(damaged)
    predict(resumed)
    assert options.output.read_bytes() == whole


def slowly(options: PredictOptions) -> None:
    """A run in a process of its own, which leaves time to kill it."""
    blocks.BLOCK_BATCHES = 6
    run = Predictor.run

    def slow(self, pieces):
        time.sleep(0.2)
        return run(self, pieces)

    Predictor.run = slow
    predict(options)


def test_killed_in_the_midst_of_a_run_and_resumed(options, whole):
    """By SIGKILL, which nobody can answer."""
    process = forked.process(slowly, options)
    process.start()
    part = part_of(options.output)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.read_bytes().count(b"\n") > 12):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not options.output.exists()
    kept = part.read_bytes().count(b'{"row"')
    assert 0 < kept < COUNT
    result = predict(dataclasses.replace(options, resume=True))
    assert COUNT - kept - 1 <= result.metrics["records"] <= COUNT - kept
    assert options.output.read_bytes() == whole


def test_a_run_goes_on_only_as_it_was(options, model, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        after_batches(patched, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        predict(options)
    kept = part_of(options.output).read_bytes()
    other = write_lines(tmp_path / "other.jsonl", [{"text": "a class"}])
    again = classifier(tmp_path / "again", initializer_range=0.2)
    for changes, words in (
        ({"batch_tokens": 300}, "batch_tokens was 200 and is 300"),
        ({"set": ("top_k=1",)}, "parameters was {'top_k': 2} and is {'top_k': 1}"),
        ({"keep_all": True}, "keep was [] and is 'all'"),
        ({"input": str(other)}, "the input is another one"),
        ({"model": str(again)}, "the model is another one"),
    ):
        with pytest.raises(ArgumentError) as caught:
            predict(dataclasses.replace(options, resume=True, **changes))
        assert words in str(caught.value)
    assert part_of(options.output).read_bytes() == kept
    moved = tmp_path / "moved"
    model.rename(moved)  # the same model by another name may go on
    try:
        predict(dataclasses.replace(options, resume=True, model=str(moved), skip_bad=True))
    finally:
        moved.rename(model)
    part_of(options.output).write_bytes(b"{}\n")
    with pytest.raises(ArgumentError, match="its first line is damaged"):
        predict(dataclasses.replace(options, resume=True))


def test_two_runs_do_not_write_one_file(options, monkeypatch):
    errors = []

    def second():
        with pytest.raises(ArgumentError, match="another run is writing") as caught:
            predict(dataclasses.replace(options, overwrite=True))
        errors.append(caught.value)

    after_batches(monkeypatch, 1, second)
    predict(options)
    assert errors
    assert len(answers(options.output)) == COUNT


def bad_input(folder: Path) -> Path:
    path = folder / "bad.jsonl"
    path.write_text(
        '{"text": "a class"}\n{"text": ""}\nnothing\n{"text": "an object"}\n{"label": 3}\n'
        '{"text": 7}\n{"text": "the value", "text_pair": 8}\n', encoding="utf-8",
    )  # fmt: skip
    return path


def test_bad_records_are_told_before_any_is_answered(options, tmp_path, monkeypatch):
    options = dataclasses.replace(options, input=str(bad_input(tmp_path)))
    monkeypatch.setattr(Predictor, "load", None)  # nor is anything loaded
    with pytest.raises(ArgumentError) as caught:
        predict(options)
    assert str(caught.value).startswith(f"4 bad records in {options.input}: line 2: text is empty")
    assert "line 3: no valid JSON" in str(caught.value)
    assert "line 5: no text; and 1 more. Mend them" in str(caught.value)


def test_bad_records_are_answered_by_their_errors(options, tmp_path):
    options = dataclasses.replace(options, input=str(bad_input(tmp_path)), skip_bad=True)
    result = predict(options)
    found = answers(options.output)
    assert [bool(answer.get("error")) for answer in found] == [
        False, True, True, False, True, True, True,
    ]  # fmt: skip
    assert [answer["row"] for answer in found] == [*range(1, 8)]
    assert found[6]["error"] == "text_pair is of type int, expected a text"
    assert result.metrics["bad_records"] == 5
    assert result.metrics["records"] == 7


def test_what_only_the_model_finds_ends_a_run_that_can_go_on(options, tmp_path):
    """A second text that leaves no room for a window is known when it is encoded."""
    found = [{"text": text} for text in texts(30, 30)]
    found[25] = {"text": "a class " * 40, "text_pair": "an object " * 30}
    source = write_lines(tmp_path / "long.jsonl", found)
    options = dataclasses.replace(options, input=str(source))
    with pytest.raises(ArgumentError, match=r"line 26 of .*long.jsonl: text_pair is \d+ pieces"):
        predict(options)
    kept = part_of(options.output).read_bytes().count(b'{"row"')
    assert kept
    result = predict(dataclasses.replace(options, resume=True, skip_bad=True))
    assert result.metrics["records"] == 30 - kept
    assert ["error" in answer for answer in answers(options.output)] == [i == 25 for i in range(30)]


def test_a_poisoned_record_fails_alone(options, monkeypatch):
    run = Predictor.run

    def poisoned(self, pieces):
        if any(list(piece.input_ids) == victim for piece in pieces):
            raise XLNetFastError("cannot be computed")
        results = run(self, pieces)
        return [
            result * float("nan") if list(piece.input_ids) == nan else result
            for piece, result in zip(pieces, results, strict=True)
        ]

    source = [json.loads(line)["text"] for line in Path(options.input).read_text().splitlines()]
    predictor = Predictor.load(options.model)
    victim, nan = (list(predictor.encode(source[i]).pieces[0].input_ids) for i in (20, 30))
    predict(dataclasses.replace(options, output=options.output.with_name("sound.jsonl")))
    sound = answers(options.output.with_name("sound.jsonl"))
    monkeypatch.setattr(Predictor, "run", poisoned)
    with pytest.raises(XLNetFastError, match=r"line \d+ of .*: "):
        predict(options)
    predict(dataclasses.replace(options, resume=True, skip_bad=True))
    found = answers(options.output)
    assert found[20]["error"] == "cannot be computed"
    assert found[30]["error"].startswith("the model computed values that are no numbers")
    for i in {*range(COUNT)} - {20, 30}:
        assert found[i]["label"] == sound[i]["label"]
        assert found[i]["scores"] == pytest.approx(sound[i]["scores"], abs=1e-5)


def test_a_batch_that_the_device_has_no_memory_for(options, monkeypatch):
    def full(self, pieces):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Predictor, "run", full)
    with pytest.raises(XLNetFastError, match="expected a smaller --batch-tokens"):
        predict(options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": Path(".")}, "is a folder"),
        ({"output": Path("none/a.jsonl")}, "the folder .*none does not exist"),
        ({"output": Path("a.xlsx")}, "must end in one of .jsonl"),
        ({"output": None, "resume": True}, "resume goes on with a file"),
        ({"set": ("top=1",)}, "no parameter 'top'; it has: top_k, threshold"),
        ({"set": ("top_k=few",)}, "top_k is 'few', expected a whole number"),
        ({"set": ("top_k=0",)}, "top_k is 0, expected at least 1"),
        ({"set": ("top_k",)}, "set must be NAME=VALUE"),
        ({"set": ("top_k=1", "top_k=2")}, "twice"),
        ({"long": "short"}, "long must be one of"),
        ({"stride": 63}, "stride is 63"),
        ({"task": "dreams"}, "task must be one of"),
        ({"device": "abacus"}, "device must be"),
        ({"keep": "a", "keep_all": True}, "give one of them"),
        ({"whole": True}, "whole is of texts"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"resume": True, "overwrite": True}, "overwrite starts anew"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options, changes, words):
    with pytest.raises(ArgumentError, match=words):
        predict(dataclasses.replace(options, **changes))
    assert not part_of(options.output).exists()


def test_long_texts_by_window_memory_and_cut(options, tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("the value of a class is an object\n" * 100, encoding="utf-8")
    found = {}
    for long in ("window", "memory", "truncate"):
        lines: list[str] = []
        given = dataclasses.replace(
            options, input=str(path), output=None, whole=True, long=long, set=()
        )
        predict(given, lines.append)
        (found[long],) = map(json.loads, lines)
    assert found["truncate"]["cut"] is True
    assert "cut" not in found["window"]
    assert len({answer["score"] for answer in found.values()}) == 3


def test_lines_now_and_then_where_there_is_no_terminal():
    shown, now = io.StringIO(), [0.0]
    console = Console(file=shown, force_terminal=False, width=40)
    with RecordProgress(4000, 1000, console, lambda: now[0]) as progress:
        for _ in range(4):
            now[0] += QUIET_S / 2
            progress.advance(500)
    assert shown.getvalue() == (
        "answered 2,000 of 4,000 records, 50 records/s, 0:00:40 left\n"
        "answered 3,000 of 4,000 records, 50 records/s, 0:00:20 left\n"
    )
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=100)
    with RecordProgress(4000, 0, terminal) as progress:
        progress.advance(4000)
    assert "4000/4000" in shown.getvalue()
    assert "answering" in shown.getvalue()
    assert "records/s" in shown.getvalue()


def test_progress_in_other_words():
    shown, now = io.StringIO(), [0.0]
    console, words = Console(file=shown, width=40), ("foretelling", "foretold", "tokens")
    with RecordProgress(100, 0, console, lambda: now[0], words) as progress:
        now[0] += QUIET_S
        progress.advance(60)
    assert shown.getvalue() == "foretold 60 of 100 tokens, 3 tokens/s, 0:00:13 left\n"
