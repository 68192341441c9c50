"""`generate` of a Transformer-XL: the tokens of the model's own `generate`, prompt by prompt."""

from __future__ import annotations

import pytest
import torch

from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate import GenerateOptions, generate
from xlnet_fast.models.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel
from xlnet_fast.models.transfo_xl.tokenization import TransfoXLTokenizer

LINE = "the cat sat on a mat and then it went to sleep again"
WORDS = ["<eos>", "<unk>", *LINE.split()]
PROMPTS = ("the cat sat", "a mat and then it", "sleep")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("transfo-xl")
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    TransfoXLTokenizer(vocab_file=str(path / "vocab.txt"), moses=False).save_pretrained(path)
    torch.manual_seed(3)
    config = TransfoXLConfig(
        vocab_size=len(WORDS), cutoffs=[6], d_model=16, d_embed=16, n_head=2, d_head=8, d_inner=16,
        n_layer=2, mem_len=4, clamp_len=3, div_val=2,
    )  # fmt: skip
    model = TransfoXLLMHeadModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(path)
    return str(path)


def written(folder, **options):
    return generate(GenerateOptions(model=folder, **options), say=lambda _: None).texts


def test_texts_of_a_batch_are_those_of_each_prompt_alone(folder):
    together = written(folder, prompt=PROMPTS, max_new_tokens=7)
    alone = [written(folder, prompt=(one,), max_new_tokens=7)[0] for one in PROMPTS]
    assert together == alone
    assert len({text.whole for text in together}) == len(PROMPTS)


def test_text_is_that_of_the_models_generate(folder):
    tokenizer = TransfoXLTokenizer.from_pretrained(folder)
    model = TransfoXLLMHeadModel.from_pretrained(folder).eval()
    ids = tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
    best = model.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0)
    (text,) = written(folder, prompt=PROMPTS[1:2], max_new_tokens=6, num_beams=3)
    assert text.whole == tokenizer.decode(best[0], skip_special_tokens=True)


@pytest.mark.parametrize(
    "options",
    [{"memory": False}, {"segment_length": 8}, {"prompt_lookup": 2}, {"backend": "gpu"}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_of_xlnet_alone_is_refused(folder, options):
    with pytest.raises(ArgumentError, match=r"for an XLNet|unknown backend"):
        written(folder, prompt=PROMPTS[:1], **options)


def test_another_vocabulary_is_refused(folder, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "more"]) + "\n", encoding="utf-8")
    TransfoXLTokenizer(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="tokenizer"):
        written(folder, prompt=PROMPTS[:1], tokenizer=str(tmp_path))
