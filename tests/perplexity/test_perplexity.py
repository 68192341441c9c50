"""`perplexity`: a text in, figures out; and what cannot be used."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch
from foretold import one_by_one, options, plain_xlnet, random_ids, text_file
from straight_transfo_xl import Straight
from tiny_finetuning import checkpoint
from tiny_foretelling import SYMBOLS, WORDS, transfo_xl, words_text, write_vocabulary

from xlnet_fast.checkpoint import load_transfo_xl
from xlnet_fast.errors import ArgumentError, NotFinite
from xlnet_fast.perplexity import PerplexityOptions, perplexity
from xlnet_fast.perplexity.transfo_xl import TransfoXLReader

PLAIN = "the value of a class is an object\nwith a function\n\nthis class is the value\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return transfo_xl(tmp_path_factory.mktemp("transfo_xl"))


@pytest.fixture(scope="module")
def xlnet(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("xlnet"), initializer_range=0.4)


def test_the_figures_are_those_of_the_losses(folder, tmp_path):
    text = words_text(12)
    told: list[str] = []
    result = perplexity(
        options(folder, text_file(tmp_path, text), output=tmp_path / "out.json"), told.append
    )
    ids = [SYMBOLS.index(word) for line in text.splitlines() for word in [*line.split(), "<eos>"]]
    model = load_transfo_xl(str(folder))
    losses = Straight(model, torch.float64, seen=8, zeros=0, clamp_len=5).losses(ids)
    metrics, count = result.metrics, len(ids) - 1
    assert (metrics["tokens"], metrics["left_out_tokens"], result.of) == (count, 1, count)
    assert metrics["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    first = text.index(text.split()[0]) + len(text.split()[0])
    assert metrics["characters"] == metrics["bytes"] == len(text) - first
    bits = metrics["loss"] / math.log(2)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["bits_per_token"] == pytest.approx(bits)
    assert metrics["bits_per_character"] == pytest.approx(bits * count / (len(text) - first))
    assert metrics["tokens_per_second"] == pytest.approx(count / metrics["seconds"])
    assert metrics["unknown_tokens"] == metrics["unknown_share"] == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written == result.record()
    assert written["form"] == "tokenized"
    assert written["memory_length"] == 8
    assert told == [
        f"{count + 1} tokens of {tmp_path / 'text.txt'}, read as tokenized; 1 left out: the first, "
        "which nothing foretells"
    ]


def test_streams_are_read_side_by_side_and_what_is_left_out_is_told(folder, tmp_path):
    words = [WORDS[int(i)] for i in random_ids(len(WORDS), 23)[0]]
    path = text_file(tmp_path, " ".join(words))  # 24 tokens with <eos>
    told: list[str] = []
    given = {"form": "tokenized", "segment_length": 3}
    together = perplexity(options(folder, path, batch_size=5, **given), told.append)
    assert "; 9 left out: the first of each stream, 4 at the end" in told[0]
    assert together.metrics["tokens"] == 15
    assert together.metrics["left_out_tokens"] == 9
    losses, characters = [], 0
    for stream in range(5):
        own = words[4 * stream : 4 * stream + 4]
        alone = perplexity(options(folder, text_file(tmp_path, " ".join(own)), limit=4, **given))
        losses.append(alone.metrics["loss"])
        characters += len(" ".join(["", *own[1:]]))
    assert together.metrics["loss"] == pytest.approx(sum(losses) / 5, rel=1e-6)
    assert together.metrics["characters"] == characters


def test_a_limit_reads_the_beginning(folder, tmp_path):
    text = words_text(9)
    whole, part = (
        perplexity(options(folder, text_file(tmp_path, text), limit=limit)) for limit in (None, 7)
    )
    assert (part.metrics["tokens"], part.of) == (6, 6)
    assert part.metrics["characters"] < whole.metrics["characters"]
    assert part.metrics["loss"] != whole.metrics["loss"]


def test_characters_that_take_several_bytes(tmp_path):
    symbols = ("<eos>", "<unk>", "né", "日本")
    folder = transfo_xl(tmp_path / "model", symbols, cutoffs=[])
    text = "né 日本 né\n日本\n"
    result = perplexity(options(folder, text_file(tmp_path, text), form="tokenized"))
    metrics = result.metrics
    assert (metrics["tokens"], metrics["characters"], metrics["bytes"]) == (5, 10, 19)
    ratio = metrics["bits_per_character"] / metrics["bits_per_byte"]
    assert ratio == pytest.approx(19 / 10)


def test_unknown_words_are_counted_and_many_of_them_warned_of(folder, tmp_path):
    path = text_file(tmp_path, "w0 zebra w1 w2 <unk> w3\n" * 2)
    with pytest.warns(UserWarning, match=r"lacks 14\.3% of the text's tokens"):
        result = perplexity(options(folder, path, form="tokenized"))
    assert result.metrics["unknown_tokens"] == 2  # an <unk> in the text is known
    assert result.metrics["unknown_share"] == pytest.approx(2 / 13)


def test_an_xlnet_reads_text_as_it_is_pretrained(xlnet, tmp_path):
    result = perplexity(options(xlnet, text_file(tmp_path, PLAIN), segment_length=9))
    from xlnet_fast.train.pretraining.corpus import Vocabulary, documents_of_lines, encode
    from xlnet_fast.train.shared.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(str(xlnet))
    corpus = encode(documents_of_lines(PLAIN.splitlines()), tokenizer, Vocabulary.of(tokenizer))
    ids = torch.from_numpy(corpus.tokens.astype("int64"))[None]
    exact = one_by_one(plain_xlnet(xlnet, torch.float64), ids)
    assert result.metrics["tokens"] == len(corpus) - 1
    assert result.metrics["loss"] == pytest.approx(float(exact.mean()), rel=1e-5)
    assert result.metrics["characters"] == len(PLAIN) - len("the")
    assert (corpus.tokens == tokenizer.convert_tokens_to_ids("<eod>")).sum() == 2


def test_a_signal_ends_the_run_with_what_was_measured(folder, tmp_path, monkeypatch):
    losses = TransfoXLReader.losses

    def interrupted(self, streams):
        for number, part in enumerate(losses(self, streams)):
            if number == 1:
                signal.raise_signal(signal.SIGINT)
            yield part

    path = text_file(tmp_path, words_text(12))
    whole = perplexity(options(folder, path, limit=11))
    monkeypatch.setattr(TransfoXLReader, "losses", interrupted)
    result = perplexity(options(folder, path, segment_length=5, output=tmp_path / "out.json"))
    assert result.stopped_by == signal.SIGINT
    assert result.metrics["tokens"] == 10 < result.of
    for name in ("loss", "characters", "bits_per_character"):
        assert result.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-6), name
    assert json.loads((tmp_path / "out.json").read_text())["stopped_by"] == signal.SIGINT


def test_weights_that_are_no_numbers(tmp_path):
    folder = transfo_xl(tmp_path / "model")
    model = load_transfo_xl(str(folder))
    with torch.no_grad():
        model.transformer.layers[0].dec_attn.o_net.weight[0, 0] = math.nan
    model.save_pretrained(folder)
    path = text_file(tmp_path, words_text(5))
    with pytest.raises(NotFinite, match=r"a loss of the tokens 1 to \d+ is no number"):
        perplexity(options(folder, path))


# --- what cannot be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": None}, "no text was given"),
        ({"text": "nowhere.txt"}, "text file nowhere.txt does not exist"),
        ({"form": "verse"}, "form must be one of auto, tokenized, raw, characters, bytes, got"),
        ({"initial_memory": "full"}, "initial_memory must be one of empty, zeros, got 'full'"),
        ({"limit": 1}, "limit is 1, expected at least 2"),
        ({"segment_length": 0}, "segment_length is 0, expected at least 1"),
        ({"memory_length": 0}, "memory_length is 0, and with same_length"),
        ({"batch_size": 40}, "batch_size is 40, and the text has 10 tokens, expected at least 80"),
        ({"device": "tpu"}, "device must be cpu, cuda or cuda:N"),
        ({"output": Path("/nowhere/out.json")}, "the folder /nowhere does not exist"),
        ({"backend": "steam"}, "steam"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used(folder, tmp_path, changes, words):
    path = text_file(tmp_path, "w0 w1 w2\n\nw3 w4\nw5")
    given = {"form": "tokenized", "model": str(folder), "text": str(path), **changes}
    with pytest.raises(ArgumentError, match=words):
        perplexity(PerplexityOptions(**given))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is too short: 0 characters besides white space"),
        (b"w0 \xff", "is not UTF-8"),
        (b"w0 \0", "is no text but a binary file"),
    ],
)
def test_texts_that_cannot_be_read(folder, tmp_path, content, words):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=words):
        perplexity(options(folder, path))


def test_a_text_of_one_token(tmp_path):
    symbols = ("<unk>", *WORDS)
    folder = transfo_xl(tmp_path / "model", symbols, cutoffs=[14])
    path = text_file(tmp_path, "w0")
    with pytest.raises(ArgumentError, match="has 1 token, expected at least 2"):
        perplexity(options(folder, path, form="tokenized"))


def test_a_vocabulary_that_does_not_fit(folder, tmp_path):
    larger = write_vocabulary(tmp_path / "larger", (*SYMBOLS, "more"))
    with pytest.raises(ArgumentError, match="the vocabulary has 41 symbols"):
        perplexity(options(folder, text_file(tmp_path, "w0 w1"), tokenizer=str(larger.parent)))


def test_models_of_other_kinds(folder, xlnet, tmp_path):
    path = text_file(tmp_path, "w0 w1")
    for name, settings, words in (
        ("bert", {"model_type": "bert"}, "is a bert model, expected a Transformer-XL or an XLNet"),
        (
            "classifier",
            {"model_type": "transfo-xl", "architectures": ["TransfoXLForSequenceClassification"]},
            "is a TransfoXLForSequenceClassification, which has no language model head",
        ),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ArgumentError, match=words):
            perplexity(options(tmp_path / name, path))
    with pytest.raises(ArgumentError, match="does not exist"):
        perplexity(options(tmp_path / "nothing", path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"same_length": False}, "same_length is of a Transformer-XL"),
        ({"initial_memory": "zeros"}, "initial_memory is of a Transformer-XL"),
        ({"form": "bytes"}, "form is 'bytes', expected 'raw' or 'auto'"),
        ({"segment_length": 1}, "segment_length is 1, expected at least 2 for an XLNet"),
    ],
    ids=str,
)
def test_options_that_an_xlnet_does_not_have(xlnet, tmp_path, changes, words):
    with pytest.raises(ArgumentError, match=words):
        perplexity(options(xlnet, text_file(tmp_path, PLAIN), **changes))
