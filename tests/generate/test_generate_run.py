"""``generate``: Hugging Face's own tokens, batches, ends, what is told, and what is refused."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_writer import EQUAL, PROMPTS, decoded, ids_of, options, plain, written_checkpoint
from transformers import BertConfig, XLNetConfig, XLNetForSequenceClassification

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.generate import generate
from xlnet_fast.generate import run as module
from xlnet_fast.generate.prompts import Prompt, gather, side_by_side
from xlnet_fast.hf.families.xlnet import inputs

STRATEGIES = {
    "greedy": {},
    "greedy without memory": {"memory": False},
    "sampling": {"sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95, "seed": 5},
    "several": {"sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "against repeating": {"repetition_penalty": 1.5},
}
HF_NAMES = {"sample": "do_sample", "memory": "use_mems"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written_checkpoint(tmp_path_factory.mktemp("writer"))


def quietly(chosen):
    return generate(chosen, say=lambda text: None)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_tokens_are_those_of_huggingface(folder, strategy):
    chosen = STRATEGIES[strategy]
    arguments = {HF_NAMES.get(name, name): value for name, value in chosen.items()}
    ids = torch.cat([ids_of(folder, text) for text in EQUAL])
    hf = plain(folder)
    torch.manual_seed(arguments.pop("seed", 0))
    rows = hf.generate(ids, max_new_tokens=12, **arguments)
    result = quietly(options(folder, *EQUAL, **chosen))
    assert [text.whole for text in result.texts] == decoded(folder, rows)
    assert len({text.text for text in result.texts}) == len(result.texts)
    assert result.metrics["new_tokens"] == sum(text.new_tokens for text in result.texts)


def test_prompts_of_unequal_length_give_what_each_gives_alone(folder):
    hf = plain(folder)
    rows = [hf.generate(ids_of(folder, text), max_new_tokens=12)[0] for text in PROMPTS]
    for at_once in (1, 3, 8):
        together = quietly(options(folder, *PROMPTS, batch_size=at_once))
        assert [text.whole for text in together.texts] == decoded(folder, rows)


@pytest.mark.parametrize("beams", [1, 2])
def test_segments_of_prompts_of_unequal_length(folder, beams):
    chosen = options(folder, *PROMPTS, segment_length=4, num_beams=beams)
    alone = [quietly(replace(chosen, prompt=(text,))).texts[0] for text in PROMPTS]
    assert quietly(chosen).texts == alone
    assert quietly(replace(chosen, segment_length=None)).texts != alone


def test_a_prefix_is_read_and_not_printed(folder, capsys):
    chosen = options(folder, EQUAL[0], prefix="a class is an object")
    ids = torch.cat([ids_of(folder, text) for text in ("a class is an object", EQUAL[0])], 1)
    rows = plain(folder).generate(ids, max_new_tokens=12)
    (expected,) = decoded(folder, rows[:, ids.shape[1] - len(ids_of(folder, EQUAL[0])[0]) :])
    (text,) = generate(chosen).texts
    assert text.whole == expected == text.prompt + text.text
    assert capsys.readouterr().out == f"{expected}\n"
    generate(replace(chosen, stream=True))
    assert capsys.readouterr().out == f"{expected}\n"
    assert quietly(replace(chosen, prefix=None)).texts[0].text != text.text


def test_a_stream_prints_word_by_word(folder, monkeypatch):
    said = []
    monkeypatch.setattr(
        module.PromptStreamer,
        "on_finalized_text",
        lambda self, text, stream_end=False: said.append(text),
    )
    result = generate(options(folder, *EQUAL, stream=True), say=said.append)
    assert "".join(said) == "".join(text.whole for text in result.texts)
    assert len([part for part in said if part]) > 4


def test_a_text_ends_where_the_models_settings_say(folder):
    """Padding follows there, in a batch with one that goes on."""
    chosen = options(folder, *EQUAL)
    model, tokenizer = module.load(chosen, torch.device("cpu"))
    prompts = [module.encode(tokenizer, text) for text in EQUAL]
    ids, _ = side_by_side(prompts, None)
    first, second = model.generate(ids, max_new_tokens=12)[:, ids.shape[1] :].tolist()
    place, end = next((i, token) for i, token in enumerate(first) if token not in second)
    for ends in (end, [2, end]):
        model.generation_config.eos_token_id = ends
        texts, steps = module.write(model, tokenizer, prompts, chosen)
        assert [(text.new_tokens, text.ended) for text in texts] == [(place + 1, True), (12, False)]
        assert steps == 12


def test_bf16_and_a_backend_by_name(folder):
    in_bf16, by_name = (
        quietly(options(folder, *PROMPTS, **chosen)).texts
        for chosen in ({"dtype": "bf16"}, {"backend": "sdpa"})
    )
    assert [text.new_tokens for text in in_bf16] == [12] * 4
    assert by_name == quietly(options(folder, *PROMPTS)).texts
    with pytest.raises(BackendUnavailable, match="triton"):
        quietly(options(folder, backend="triton"))


def test_prompts_of_a_file_and_of_standard_input_and_json_lines(
    folder, tmp_path, monkeypatch, capsys
):
    file, out = tmp_path / "prompts.txt", tmp_path / "texts.jsonl"
    file.write_text("import this module\na class\n", encoding="utf-8")
    given = options(folder, EQUAL[0], file=str(file), output=out)
    said = []
    texts = generate(given, say=said.append).texts
    assert [text.prompt for text in texts] == [EQUAL[0], "import this module", "a class"]
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["whole"] for row in rows] == [text.whole for text in texts]
    assert said == []
    stdin = SimpleNamespace(buffer=io.BytesIO(file.read_bytes()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert quietly(options(folder, EQUAL[0], file="-")).texts == texts
    generate(options(folder, EQUAL[0], output=Path("-")))
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row == rows[0]


def test_lines_end_with_a_newline_alone(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("one\u2028line\x0b\x0cmore\u0085\r\ntwo".encode())
    assert gather((), str(file)) == ["one\u2028line\x0b\x0cmore\u0085", "two"]


def test_metrics_are_of_the_steps(folder, monkeypatch):
    clock = iter((0.0, 3.0, 10.0, 13.0))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    chosen = options(folder, *EQUAL, "a class", batch_size=2)
    metrics = quietly(chosen).metrics
    assert metrics.pop("peak_memory_mib") > 10
    assert metrics == {
        "new_tokens": 36, "seconds": 6.0, "tokens_per_second": 6.0, "ms_per_token": 250.0,
    }  # fmt: skip


def test_what_is_forgotten_is_told(tmp_path):
    folder = written_checkpoint(tmp_path, mem_len=5)
    with pytest.warns(UserWarning, match=r"remembers 5 tokens .* prompt has \d+: its first \d+"):
        quietly(options(folder, *PROMPTS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quietly(options(folder, *EQUAL))
        quietly(options(folder, *PROMPTS, memory=False))


def test_settings_of_pretraining_are_left_out_and_told(folder, tmp_path):
    other = written_checkpoint(tmp_path, reuse_len=2, bi_data=True)
    with pytest.warns(UserWarning, match="reuse_len 2 and bi_data True, which are of pretraining"):
        texts = quietly(options(other, *PROMPTS)).texts
    assert texts == quietly(options(folder, *PROMPTS)).texts


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "no model was given, expected a folder or a Hub id: xlnet-fast generate"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3, expected at least 1"),
        ({"prompt": ()}, "no prompt was given, expected --prompt TEXT or --file FILE"),
        ({"prompt": ("a", " \n")}, "prompt 2 is empty"),
        ({"prompt": ("\u200b",)}, "comes to no token"),
        ({"dtype": "fp8"}, "dtype must be one of fp32, bf16, fp16"),
        ({"device": "toaster"}, "device must be cpu, cuda or cuda:N, got 'toaster'"),
        ({"device": "cuda:99"}, r"device is cuda:99, but torch sees \d+ GPUs"),
        ({"backend": "none"}, "backend"),
        ({"temperature": 0.5}, "temperature is of sampling, expected --sample"),
        ({"sample": True, "temperature": 0.0}, "temperature is 0.0, expected more than 0"),
        ({"sample": True, "top_p": 1.5}, "top_p is 1.5, expected 0 to 1"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0, expected more than 0"),
        ({"num_return_sequences": 2}, "add --sample, or --num-beams 2"),
        ({"sample": True, "num_beams": 2, "num_return_sequences": 3}, "at most num_beams, 2"),
        ({"stream": True, "num_beams": 2}, "stream prints one text as it is written"),
        ({"stream": True, "batch_size": 2}, "stream prints one text as it is written"),
        ({"prompt_lookup": 3, "num_beams": 2}, "prompt_lookup works on one text"),
        ({"segment_length": 1}, "segment_length is 1, expected at least 2"),
        ({"segment_length": 4, "memory": False}, "needs the memory that --no-memory leaves out"),
        ({"file": "/no/such/file"}, "text file /no/such/file does not exist"),
        ({"model": "/no/such/model"}, "the checkpoint folder /no/such/model does not exist"),
        ({"model": "someone/something"}, "HF_HUB_OFFLINE forbids to fetch it"),
        ({"tokenizer": "/no/such/place"}, "the tokenizer /no/such/place does not exist"),
        ({"output": "/no/such/place/texts"}, "the folder /no/such/place does not exist"),
        ({"output": "/tmp"}, "is a folder, expected the name of a file"),
    ],
    ids=str,
)
def test_what_is_refused(folder, changes, words):
    if "output" in changes:
        changes = {"output": module.Path(changes["output"])}
    with pytest.raises(ArgumentError, match=words):
        quietly(options(folder, **changes))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "too short: 0 characters"),
        (b"one\n\ntwo\n", "line 2 of .* is empty, expected a prompt on each"),
        (b"caf\xe9", "is not UTF-8"),
        (b"a\0b", "a binary file"),
    ],
    ids=str,
)
@pytest.mark.parametrize("through", ["a file", "standard input"])
def test_files_that_are_refused(folder, tmp_path, monkeypatch, content, words, through):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    with pytest.raises(ArgumentError, match=words):
        quietly(options(folder, prompt=(), file=str(file) if through == "a file" else "-"))


def test_models_that_cannot_write(tmp_path):
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    with pytest.raises(ArgumentError, match="is a bert model, expected an XLNet"):
        quietly(options(tmp_path / "bert"))
    shape = XLNetConfig(vocab_size=300, d_model=8, n_layer=1, n_head=2, d_inner=8)
    XLNetForSequenceClassification(shape).save_pretrained(tmp_path / "classes")
    words = "is an XLNetForSequenceClassification, which has no language model head"
    with pytest.raises(ArgumentError, match=words):
        quietly(options(tmp_path / "classes"))


def test_a_folder_without_a_tokenizer(folder, tmp_path):
    plain(folder).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match=r"holds no tokenizer \(spiece.model or"):
        quietly(options(tmp_path))
    texts = quietly(options(tmp_path, tokenizer=str(folder))).texts
    assert texts == quietly(options(folder)).texts


def test_unequal_prompts_need_something_to_put_beside_them():
    with pytest.raises(ArgumentError, match="the tokenizer has none: set"):
        side_by_side([Prompt("a", [1]), Prompt("b", [1, 2])], None)
    assert side_by_side([Prompt("a", [1]), Prompt("b", [2])], None)[1] is None


def test_looking_up_the_prompt_writes_the_same_text_in_fewer_passes(folder, monkeypatch):
    passes = []
    embed = inputs.embed_tokens
    monkeypatch.setattr(inputs, "embed_tokens", lambda *a: passes.append(1) or embed(*a))
    texts, counts = [], []
    for lookup in (None, 3):
        passes.clear()
        texts.append(quietly(options(folder, EQUAL[0], prompt_lookup=lookup)).texts)
        counts.append(len(passes))
    assert texts[0] == texts[1]
    assert counts[1] <= counts[0]
    given = options(folder, EQUAL[0], prompt_lookup=3).search()
    assert given["prompt_lookup_num_tokens"] == 3


def test_what_hugging_face_refuses_is_told_and_what_fails_is_raised(folder):
    chosen = options(folder, EQUAL[0])
    _, tokenizer = module.load(chosen, torch.device("cpu"))
    prompts = [module.encode(tokenizer, EQUAL[0])]
    for error, expected, words in (
        (ValueError("no such option\nand more"), ArgumentError, "generate refuses: no such option"),
        (RuntimeError("a fault"), RuntimeError, "a fault"),
    ):

        def fail(*args, error=error, **kwargs):
            raise error

        refuses = SimpleNamespace(generate=fail, device=torch.device("cpu"))
        with pytest.raises(expected, match=words):
            module.write(refuses, tokenizer, prompts, chosen)
