"""A Transformer-XL on pieces of words, as `pretrain` leaves one: its perplexity, its texts."""

from __future__ import annotations

import pytest
import torch
from foretold import options, text_file
from straight_transfo_xl import Straight
from tiny_foretelling import SHAPE

from xlnet_fast.checkpoint import load_transfo_xl
from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate import GenerateOptions, generate
from xlnet_fast.models.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel
from xlnet_fast.perplexity import perplexity
from xlnet_fast.text import builtin_text, train_tokenizer
from xlnet_fast.train.pretraining.transfo_xl.tokenizers import without_segments
from xlnet_fast.train.shared.text_tokenizers import load_transfo_xl_tokenizer
from xlnet_fast.train.shared.tokenizers import load_tokenizer

DOCUMENTS = "the value of a class\nis an object\n\nwith a function\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pieces")
    train_tokenizer(builtin_text()[:40_000], 300, path / "tokenizer")
    without_segments(load_tokenizer(str(path / "tokenizer"))).save_pretrained(path)
    torch.manual_seed(0)
    vocab_size = len(load_transfo_xl_tokenizer(str(path)))
    config = TransfoXLConfig(**{**SHAPE, "vocab_size": vocab_size, "mem_len": 64})
    TransfoXLLMHeadModel(config).save_pretrained(path)
    return path


def test_documents_are_read_as_pretrain_reads_them(folder, tmp_path):
    result = perplexity(options(folder, text_file(tmp_path, DOCUMENTS)))
    tokenizer = load_transfo_xl_tokenizer(str(folder))
    lines = DOCUMENTS.split("\n")
    encoded = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
    eod = tokenizer.convert_tokens_to_ids("<eod>")
    ids = [*encoded[0], *encoded[1], eod, *encoded[3], eod]
    model = load_transfo_xl(str(folder))
    losses = Straight(model, torch.float64, seen=64, zeros=0, clamp_len=5).losses(ids)
    assert result.metrics["tokens"] == len(ids) - 1
    assert result.metrics["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert result.settings["form"] == "raw"


def test_another_form_is_refused(folder, tmp_path):
    with pytest.raises(ArgumentError, match="vocabulary is one of pieces"):
        perplexity(options(folder, text_file(tmp_path, DOCUMENTS), form="tokenized"))


def test_a_vocabulary_that_does_not_fit_is_refused(folder, tmp_path):
    small = TransfoXLConfig(**{**SHAPE, "vocab_size": 60})
    TransfoXLLMHeadModel(small).save_pretrained(tmp_path)
    chosen = options(tmp_path, text_file(tmp_path, DOCUMENTS), tokenizer=str(folder))
    with pytest.raises(ArgumentError, match="only 60"):
        perplexity(chosen)


def test_texts_go_on_from_pieces(folder):
    prompts = ("the value of", "a class is an object with")
    together = generate(
        GenerateOptions(model=str(folder), prompt=prompts, max_new_tokens=4), say=lambda _: None
    )
    tokenizer = load_transfo_xl_tokenizer(str(folder))
    model = TransfoXLLMHeadModel.from_pretrained(folder).eval()
    for prompt, text in zip(prompts, together.texts, strict=True):
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        mask = torch.ones_like(ids)
        row = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)[0]
        assert text.whole == tokenizer.decode(row, skip_special_tokens=True)
