"""Records of files: every format, whole and damaged, and which columns are a task's fields."""

from __future__ import annotations

import io
import json
import os
import threading

import pytest

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict import records
from xlnet_fast.predict.layout import layout_of, survey
from xlnet_fast.predict.options import PredictOptions
from xlnet_fast.predict.records import Row, Rows, open_rows
from xlnet_fast.predict.tasks.base import Task
from xlnet_fast.predict.tasks.text_classification import TextClassification


class Choices(Task):
    """Fields of all kinds; it answers nothing."""

    name = "choices"
    required = {"passage": "text", "choices": "list of texts"}  # noqa: RUF012
    instead = {"tokens": "list of texts"}  # noqa: RUF012
    optional = {"stem": "text"}  # noqa: RUF012


def read(content: str | bytes, kind: str, **settings) -> list[tuple]:
    data = content.encode() if isinstance(content, str) else content
    return [
        (row.number, row.place, dict(row.values), row.error)
        for row in Rows(io.BytesIO(data), "f", kind, **settings)
    ]


def layout(names, task=TextClassification, **options):
    given = {"model": "m", "input": "f.csv", **options}
    return layout_of(task, PredictOptions(**given), names, "f")


def test_json_lines_each_with_its_line_and_what_is_wrong():
    lines = [
        b'\xef\xbb\xbf{"text": "caf\xc3\xa9\xe2\x80\xa8x"}\r\n', b"\n",
        b'{"text": 1, "n": NaN}\n', b"{\n",
        b"[1]\n", b'{"text": "\xff"}\n', b'{"text": "\\ud800"}\n', b"[" * 100_000 + b"\n",
        b'{"text": "the last"}',
    ]  # fmt: skip
    found = read(b"".join(lines), "jsonl")
    assert [row[:2] for row in found] == [
        (1, "line 1"), (2, "line 3"), (3, "line 4"), (4, "line 5"), (5, "line 6"), (6, "line 7"),
        (7, "line 8"), (8, "line 9"),
    ]  # fmt: skip
    assert [row[2] for row in found] == [
        {"text": "caf\u00e9\u2028x"}, {"text": 1, "n": None}, {}, {}, {}, {}, {},
        {"text": "the last"},
    ]  # fmt: skip
    for (*_, error), words in zip(
        found,
        ["", "", "no valid JSON: Expecting property name", "a list and no object", "byte 0xff",
         "half of a surrogate pair", "no readable JSON", ""],
        strict=True,
    ):  # fmt: skip
        assert words in error
        assert bool(words) == bool(error)


def test_tables_with_quotes_line_ends_and_rows_of_other_lengths():
    content = 'id,text\r\n007,"a, ""b""\nc"\n\nNA,\nx\n1,2,3\n8,last'
    assert read(content, "csv") == [
        (1, "line 2", {"id": "007", "text": 'a, "b"\nc'}, ""),
        (2, "line 5", {"id": "NA", "text": ""}, ""),
        (3, "line 6", {}, "1 cells, and the first line has 2"),
        (4, "line 7", {}, "3 cells, and the first line has 2"),
        (5, "line 8", {"id": "8", "text": "last"}, ""),
    ]
    assert read("id\ttext\n1\ta,b\n", "tsv") == [(1, "line 2", {"id": "1", "text": "a,b"}, "")]
    (row,) = read(b"text\n\xe9t\xe9\n", "csv")
    assert row[3].startswith("not UTF-8 (byte 0xe9)")
    (row,) = read("text\n" + "word " * 100_000 + "\n", "csv")
    assert len(row[2]["text"]) == 500_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('text\na\n"b\nc', "cannot be read from line 3 on: unexpected end of data"),
        ('text\n"a" b\n', "cannot be read from line 2 on"),
        ("text;label\na;b\n", "parted by commas"),
        ("text,text\na,b\n", "names the column 'text' twice"),
        ("text,\na,b\n", "must name the columns"),
    ],
)
def test_a_table_that_cannot_be_read_on(content, words):
    with pytest.raises(ArgumentError, match=words):
        read(content, "csv")


def test_lists_of_json_and_lines_that_are_called_so():
    rows = [{"text": "a"}, {"text": "\ud800"}, {}]
    found = read(json.dumps(rows), "json")
    assert [row[1] for row in found] == ["item 1", "item 2", "item 3"]
    assert [row[2] for row in found] == [{"text": "a"}, {}, {}]
    assert "surrogate" in found[1][3]
    assert read('{"text": "a"}\n{"text": "b"}\n', "json") == read(
        '{"text": "a"}\n{"text": "b"}', "jsonl"
    )
    question = {"id": "q", "question": "why", "answers": []}
    squad = {"data": [{"paragraphs": [{"context": "c", "qas": [question]}]}]}
    assert read(json.dumps(squad), "json")[0][2]["context"] == "c"
    for content, words in (
        ("[1]", "a list of objects"), ("[{", "no valid JSON"), ("[" * 100_000, "cannot be read"),
        ('[{"paragraphs": [{}]}]', "nested otherwise than SQuAD"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=words):
            read(content, "json")


def test_texts_by_line_and_whole():
    content = "one\u2028more\r\n\n three\n"
    assert read(content, "text") == [
        (1, "line 1", {"text": "one\u2028more"}, ""),
        (2, "line 2", {"text": ""}, ""),
        (3, "line 3", {"text": " three"}, ""),
    ]
    assert read(content, "text", whole=True) == [(1, "the text", {"text": content}, "")]


def test_a_line_without_an_end(monkeypatch):
    monkeypatch.setattr(records, "LONGEST_LINE", 1 << 20)
    content = b"a\n" + b"x" * (1 << 20) + b"x"
    for kind, whole in (("text", False), ("text", True), ("jsonl", False), ("csv", False)):
        with pytest.raises(ArgumentError, match="longer than 1 MiB"):
            read(content, kind, whole=whole)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "f"
    for content, words in (
        (b"", "is empty"), ("a".encode("utf-16"), "UTF-16"), (b"PAR1\0", "binary file"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(ArgumentError, match=words), open_rows(str(path), "text"):
            pass
    for name, words in (("none.csv", "does not exist"), (".", "cannot be read: Is a directory")):
        with pytest.raises(ArgumentError, match=words), open_rows(str(tmp_path / name), "csv"):
            pass
    path.write_text('{"a": 1}\n', encoding="utf-8")
    with open_rows(str(path), "jsonl") as rows:
        assert survey(rows).names == ("a",)
        assert rows.digest() == rows.digest()
    path.write_text("\n\n", encoding="utf-8")
    with open_rows(str(path), "jsonl") as rows, pytest.raises(ArgumentError, match="no records"):
        survey(rows)


def test_a_pipe_is_read_as_often_as_needed(tmp_path):
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a\nb\n",))
    writer.start()
    with open_rows(str(pipe), "text") as rows:
        writer.join()
        assert [row.values["text"] for row in rows] == ["a", "b"]
        assert survey(rows).count == 2


def test_columns_by_custom_and_by_name():
    row = Row(4, "line 5", {"qid": "x", "review": "a", "premise": "b", "hypothesis": "", "n": None})
    found = layout(tuple(row.values), keep="n,review")
    assert found.told() == "text from review, text_pair from hypothesis"
    assert found.record(row) == {"text": "a"}  # an empty cell is no second text
    assert found.answer(row, {"label": "l"}) == {
        "row": 4, "id": "x", "input": {"n": None, "review": "a"}, "label": "l",
    }  # fmt: skip
    named = layout(tuple(row.values), column=("text=premise", "id=n"), keep_all=True)
    assert named.record(row) == {"text": "b"}
    assert named.answer(row, {})["id"] is None
    assert list(named.answer(row, {})["input"]) == list(row.values)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"column": ("text=x",)}, "no column 'x' for text"),
        ({"column": ("tags=label",)}, "no field 'tags'"),
        ({"keep": "label,x"}, "no column 'x'; it has: label"),
        ({}, "no column for text: none of text, sentence"),
    ],
)
def test_columns_that_are_not_there(options, words):
    with pytest.raises(ArgumentError, match=words):
        layout(("label",), **options)


def test_lists_in_tables_and_fields_that_stand_for_others():
    found = layout(("context", "question", "ending1", "ending0"), Choices)
    row = Row(1, "line 2", {"context": "c", "question": "", "ending1": "b", "ending0": "a"})
    assert found.record(row) == {"passage": "c", "choices": ["a", "b"]}
    assert found.told() == "passage from context, stem from question, choices from ending0, ending1"
    found = layout(("context", "choices"), Choices)
    for value in ('["a", "b"]', ["a", "b"], {"text": ["a", "b"], "label": ["A", "B"]}):
        row = Row(1, "line 2", {"context": "c", "choices": value})
        assert found.record(row)["choices"] == ["a", "b"]
    words = layout(("words",), Choices)
    assert words.record(Row(1, "", {"words": "a b"})) == {"tokens": ["a", "b"]}
    assert words.problem(Row(1, "", {"words": " "})) == "tokens is empty"
    assert words.problem(Row(1, "", {})) == "no tokens"
    with pytest.raises(ArgumentError, match="a text file has one field, and choices reads passage"):
        layout(("text",), Choices, input="f.txt")


def test_the_format_is_that_of_the_name_or_said():
    def kind(name, **options):
        return PredictOptions(model="m", input=name, **options).input_format

    assert [kind(name) for name in ("a.CSV", "b.ndjson", "c.txt", "d.json", "e.tsv")] == [
        "csv", "jsonl", "text", "json", "tsv",
    ]  # fmt: skip
    assert kind("-", format="csv") == "csv"
    for name, options, words in (
        ("-", {}, "standard input has no name: say by --format"),
        ("a.parquet", {}, "ends in none of"),
        ("a.csv", {"format": "xml"}, "format must be one of"),
    ):
        with pytest.raises(ArgumentError, match=words):
            kind(name, **options)
