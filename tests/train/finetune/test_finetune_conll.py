"""CoNLL files: columns, sentences, what is left out, and a sentence for a line that is wrong."""

from __future__ import annotations

import datasets
import pytest
from tiny_finetuning import checkpoint, options, read_jsonl, token_rows

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import finetune
from xlnet_fast.train.finetune.conll import read_conll
from xlnet_fast.train.finetune.data import load_rows
from xlnet_fast.train.finetune.token_classification import TokenClassification

CONLL_2003 = """\
-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
. . O O

-DOCSTART- -X- -X- O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


@pytest.fixture
def read(tmp_path):
    """The rows of a text."""

    def read(content: str, name: str = "words.conll"):
        (tmp_path / name).write_bytes(content.encode())
        return read_conll(tmp_path / name)

    return read


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_the_columns_of_conll_2003(read, ends):
    rows = read(CONLL_2003.replace("\n", ends))
    assert rows.column_names == ["tokens", "tags", "1", "2", "3", "4"]
    assert rows["tokens"][:] == [["EU", "rejects", "."], ["Peter", "Blackburn"]]
    assert rows["tags"][:] == [["B-ORG", "O", "O"], ["B-PER", "I-PER"]]
    assert rows["2"][1] == ["NNP", "NNP"]
    assert rows["4"][:] == rows["tags"][:]


def test_words_may_have_blanks_where_tabs_part_the_columns(read):
    """And be blanks of other kinds; neither a blank line with spaces nor its absence matters."""
    rows = read("New York\tB\n\u00a0\tI\n  \n\n\nof\u2028\tO")
    assert rows["tokens"][:] == [["New York", "\u00a0"], ["of\u2028"]]
    assert rows["tags"][:] == [["B", "I"], ["O"]]
    assert read("a  B  \n")["tags"][:] == [["B"]]


def test_words_without_tags(read):
    assert read("EU\nrejects\n\nPeter\n").column_names == ["tokens", "1"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a X O\nb O\n", r"line 2 of .*words.conll has 2 columns, 'b O': expected 3"),
        ("# id 1\na O\n", r"line 2 of .* has 2 columns, 'a O': expected 3"),
        ("a\t\tO\n", r"line 1 of .* has 3 columns, 'a\\t\\tO': expected 3, .* none empty"),
        ("-DOCSTART- O\n\n", "holds no rows"),
    ],
)
def test_lines_that_do_not_fit(read, content, words):
    with pytest.raises(ArgumentError, match=words):
        read(content)


def test_where_such_files_are_read(tmp_path):
    path = tmp_path / "eng.testa"
    path.write_text(CONLL_2003)
    assert len(load_rows(str(path), "train", conll=True)) == 2
    with pytest.raises(ArgumentError, match=r"must be one of .csv, .*, got '.testa'"):
        load_rows(str(path), "train")
    with pytest.raises(ArgumentError, match=r"none.conll does not exist"):
        load_rows("none.conll", "train")


def test_such_a_file_that_is_called_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "words.tsv").write_text("EU\tB-ORG\nrejects\tO\n")
    task = TokenClassification(options("token-classification", tmp_path, tmp_path), None)
    rows = load_rows(str(tmp_path / "words.tsv"), "train", conll=True)
    with pytest.raises(ArgumentError, match=r"a CoNLL file, .* must be called \.conll"):
        task.split("train", "words.tsv", rows)


@pytest.mark.usefixtures("undrawn")
def test_a_run_on_files_of_words(tmp_path, monkeypatch, capsys):
    """The tags are the third of four columns; the test has words alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = token_rows(24)
    for name, some in (("train.txt", rows[:16]), ("dev.conll", rows[16:])):
        lines = (
            "\n".join(f"{w} X {t} 7" for w, t in zip(*row.values(), strict=True)) for row in some
        )
        (tmp_path / name).write_text("\n\n".join(lines) + "\n")
    (tmp_path / "test.bio").write_text("the\nimport\n\nvalue\n")
    files = {"train": "train.txt", "eval": "dev.conll", "test": "test.bio"}
    settings = options(
        "token-classification", checkpoint(tmp_path / "model"), tmp_path, steps=2, eval_every=2,
        column=("tags=3",), **{name: str(tmp_path / file) for name, file in files.items()},
    )  # fmt: skip
    result = finetune(settings)
    assert set(result.metrics) == {"eval"}
    said = capsys.readouterr().err
    assert "column '3': 3 tags of entities, B-NAME, I-NAME, O" in said
    assert "test.bio has no column '3': it is predicted, and gets no metrics" in said
    found = read_jsonl(result.output / "predictions_test.jsonl")
    assert [row["tokens"] for row in found] == [["the", "import"], ["value"]]
    assert [len(row["prediction"]) for row in found] == [2, 1]
