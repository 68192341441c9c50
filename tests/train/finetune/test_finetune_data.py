"""Rows from files: what is read, and a sentence for each file that cannot be."""

from __future__ import annotations

import json

import datasets
import pytest
from tiny_finetuning import write_csv, write_jsonl

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune.data import cut_evaluation, find_columns, hub_splits, load_rows

ROWS = [{"text": "NA, really", "label": "007"}, {"text": "1e5", "label": "null"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` keeps of a file stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def refused(source, split: str = "train") -> str:
    """The sentence of a refusal."""
    with pytest.raises(ArgumentError) as caught:
        load_rows(str(source), split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "delimiter"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_tables_are_texts_as_they_stand(tmp_path, name, delimiter):
    path = write_csv(tmp_path / name, ROWS, delimiter)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark is no part of a name
    assert load_rows(str(path), "train").to_list() == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.json"])
def test_json_lines(tmp_path, name):
    assert load_rows(str(write_jsonl(tmp_path / name, ROWS)), "train").to_list() == ROWS


@pytest.mark.parametrize("content", [ROWS, {"version": "1", "data": ROWS}])
def test_json(tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content))
    assert load_rows(str(path), "train").to_list() == ROWS


def test_parquet(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet"), "train").to_list() == ROWS


def test_squad_as_it_is_published(tmp_path):
    question = {"id": "q", "question": "who", "answers": [{"text": "me", "answer_start": 3}]}
    none = {"id": "r", "question": "why", "answers": [], "is_impossible": True}
    paragraph = {"context": "is me", "qas": [question, none]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    first, second = load_rows(str(path), "train")
    assert first["answers"] == {"text": ["me"], "answer_start": [3]}
    assert (first["id"], first["question"], first["context"]) == ("q", "who", "is me")
    assert second["answers"] == {"text": [], "answer_start": []}


def test_a_folder_of_save_to_disk(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "both")
    rows.save_to_disk(tmp_path / "one")
    assert load_rows(str(tmp_path / "both"), "validation").to_list() == ROWS
    assert load_rows(str(tmp_path / "one"), "train").to_list() == ROWS
    assert hub_splits(str(tmp_path / "both")) == ["train", "validation"]
    assert hub_splits(str(tmp_path / "one")) == []
    assert load_rows(f"{tmp_path}/both@validation", "train").to_list() == ROWS
    assert "has no split 'test'; it has train, validation" in refused(tmp_path / "both", "test")


def test_files_that_are_not_there(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.csv")
    assert "does not exist" in refused("none.jsonl")
    assert "does not exist" in refused("./none")
    assert "neither a file or folder here, nor a data set in the local cache" in refused(
        "nobody/nothing-at-all"
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.csv", b"", "is empty"),
        ("rows.csv", b"text,label\n", "holds no rows"),
        ("rows.json", b"[]", "holds no rows"),
        ("rows.csv", b"text,label\nna\xefve,1\n", "is not UTF-8 (byte 0xef near byte 13)"),
        ("rows.csv", b"text,text\na,1\n", "names the column 'text' twice"),
        ("rows.csv", b"text,\na,1\n", "must name the columns"),
        ("rows.csv", b"text,label\na,1\nb,2,3\n", "cannot be read as csv"),
        ("rows.csv", b"text;label\na;1\n", "names one column, 'text;label'"),
        ("rows.jsonl", b'{"text": "a"\n{"text"', "cannot be read as json"),
        ("rows.json", b'[{"text": "a"', "is no valid JSON"),
        ("rows.json", b"[1, 2]", "must hold a list of objects"),
        ("rows.json", b'[{"a": 1}, {"a": "x"}]', "differ in type"),
        ("rows.parquet", b"no parquet", "cannot be read as parquet"),
        ("rows.xlsx", b"PK", "must be one of .csv, .tsv"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    sentence = refused(tmp_path / name)
    assert words in sentence
    assert name in sentence


def test_broken_lines_are_told_by_us_alone(tmp_path, capfd):
    """`datasets` would log a line of its own first."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"\n{"text"')
    refused(tmp_path / "rows.jsonl")
    assert capfd.readouterr() == ("", "")
    assert datasets.logging.get_verbosity() == datasets.logging.WARNING


def test_a_byte_that_is_cut_at_the_end(tmp_path):
    (tmp_path / "rows.csv").write_bytes("text,label\ncaf\u00e9".encode()[:-1])
    assert "is not UTF-8" in refused(tmp_path / "rows.csv")


def test_a_folder_of_something_else(tmp_path):
    assert "no data set that Dataset.save_to_disk wrote" in refused(tmp_path)


# --- columns and the evaluation share ------------------------------------------------------------


def columns(names: list[str], required=("text", "label"), optional=("text_pair",), **given):
    rows = datasets.Dataset.from_dict({name: ["x"] for name in names})
    return find_columns(rows, "rows.csv", required, optional, given)


def test_usual_names_are_found():
    assert columns(["review", "sentiment"]) == {"text": "review", "label": "sentiment"}
    assert columns(["sentence1", "sentence2", "label"])["text_pair"] == "sentence2"
    assert columns(["a", "b"], text="a", label="b") == {"text": "a", "label": "b"}


def test_columns_that_are_not_there():
    with pytest.raises(ArgumentError, match=r"no column for label: .* which are: text, stars; .*"):
        columns(["text", "stars"])
    with pytest.raises(ArgumentError, match="no column 'grade' for label; it has: text, stars"):
        columns(["text", "stars"], label="grade")


def test_the_evaluation_share_is_the_same_each_time():
    rows = datasets.Dataset.from_dict({"i": list(range(20))})
    train, held = cut_evaluation(rows, 0.2, 0, "rows")
    assert (len(train), len(held)) == (16, 4)
    assert sorted([*train, *held]) == list(range(20))
    assert held == cut_evaluation(rows, 0.2, 0, "rows")[1]
    assert held != cut_evaluation(rows, 0.2, 1, "rows")[1]
    split = rows.train_test_split(test_size=4, seed=0)
    assert split["train"]["i"][:] == train
    with pytest.raises(ArgumentError, match="one row"):
        cut_evaluation(rows.select([0]), 0.2, 0, "rows")
