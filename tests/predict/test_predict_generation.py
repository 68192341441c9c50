"""Text from prompts: Hugging Face's own tokens, whatever they are batched with, and streams."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import torch
from tiny_predictors import LONG, TEXT, folder_of, home, plain, predictor
from transformers import XLNetTokenizer

from xlnet_fast.errors import ArgumentError, NotFinite
from xlnet_fast.generate import GenerateOptions, generate
from xlnet_fast.predict.streams import TURN_TOKENS
from xlnet_fast.predict.writing import AllFinite, Interrupted, Stops, Words, cut_at

PROMPTS = ("the value of", "a class", "the function is an object with a value of this class")
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": 3}
STRATEGIES = {
    "greedy": {},
    "sampling": SAMPLED,
    "several": {"do_sample": True, "num_return_sequences": 3, "seed": 5},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "against repeating": {"repetition_penalty": 1.5},
}


@pytest.fixture(scope="module")
def writer():
    return predictor(folder_of("XLNetLMHeadModel"))


@pytest.fixture(scope="module")
def tokenizer():
    return XLNetTokenizer.from_pretrained(home() / "XLNetLMHeadModel")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_texts_are_those_of_hugging_face(writer, tokenizer, strategy):
    """All prompts at once, each of them drawn by itself."""
    settings = {"max_new_tokens": 10, **STRATEGIES[strategy]}
    answers = writer(PROMPTS, **settings)
    model, seed = plain(home() / "XLNetLMHeadModel"), settings.pop("seed", 0)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        torch.manual_seed(seed)
        rows = model.generate(ids, **settings)
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        found = [prompt + one["text"] for one in answer.get("texts", [answer])]
        assert found == texts
        assert answer["text"] == texts[0][len(prompt) :]


def test_what_is_drawn_leaves_no_trace(writer):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = writer(PROMPTS[0], max_new_tokens=4, **SAMPLED)
    assert torch.equal(torch.rand(3), expected)
    assert one["seed"] == 3
    settings = {**SAMPLED, "seed": None, "max_new_tokens": 8, "temperature": 2.0}
    first, second = writer([PROMPTS[0]] * 2, **settings)
    assert first["seed"] != second["seed"]
    assert writer(PROMPTS[0], **{**settings, "seed": first["seed"]}) == first


def test_only_equal_settings_share_a_batch(writer):
    groups = [
        writer.encode("a class", **settings).pieces[0].group
        for settings in ({}, {}, {"max_new_tokens": 3}, {"stop": "x"}, SAMPLED, SAMPLED)
    ]
    assert groups[0] == groups[1]
    assert len(set(groups)) == 5
    pieces = [writer.encode("a class", max_new_tokens=n).pieces[0] for n in (3, 4)]
    with pytest.raises(ArgumentError, match="the pieces of a batch are of different groups"):
        writer.run(pieces)
    piece = writer.encode("a class", num_beams=3, max_new_tokens=10).pieces[0]
    assert len(piece) == 3 * (len(piece.input_ids) + 10)


def test_a_prefix_and_a_long_prompt_are_read_as_generate_reads_them():
    folder = folder_of("XLNetLMHeadModel")
    answers = predictor(folder, long="memory", max_length=16)
    options = GenerateOptions(
        model=str(folder), prompt=(TEXT, "a class"), prefix=LONG, max_new_tokens=8,
        segment_length=16,
    )  # fmt: skip
    expected = [text.text for text in generate(options, say=lambda text: None).texts]
    records = [{"text": text, "prefix": LONG} for text in options.prompt]
    found = [answer["text"] for answer in answers(records, max_new_tokens=8)]
    assert found == expected
    assert answers("a class", max_new_tokens=8)["text"] != found[1]


def test_a_long_prompt_is_cut_at_its_beginning_or_refused():
    folder = folder_of("XLNetLMHeadModel")
    cut = predictor(folder, long="truncate", max_length=16)
    (piece,) = cut.encode({"text": TEXT, "prefix": "a class"}).pieces
    whole = predictor(folder, long="memory").encode({"text": TEXT, "prefix": "a class"}).pieces[0]
    hidden = piece.notes["prompt"].hidden
    assert hidden
    assert list(piece.input_ids) == [*whole.input_ids[:hidden], *whole.input_ids[hidden - 16 :]]
    answer = cut({"text": TEXT, "prefix": "a class"}, max_new_tokens=4)
    assert answer["cut"] is True
    with pytest.raises(ArgumentError, match="leaves no room for the prompt"):
        cut({"text": "a", "prefix": TEXT})
    with pytest.raises(ArgumentError, match="windows make no text: long must be 'memory'"):
        predictor(folder)(LONG)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_text_ends_before_what_ends_it(writer, beams):
    whole = writer(PROMPTS, max_new_tokens=20, num_beams=beams)
    text = whole[0]["text"]
    stop = text[len(text) // 3 : len(text) // 3 + 3]
    answers = writer(PROMPTS, max_new_tokens=20, num_beams=beams, stop=[stop, "never so"])
    for one, cut in zip(whole, answers, strict=True):
        if beams == 1:
            assert cut["text"] == one["text"].split(stop)[0]
        assert stop not in cut["text"]
        assert cut["ended"] == (cut["new_tokens"] < 20 or one["ended"])
    assert answers[0]["new_tokens"] < 20
    assert answers[0]["ended"] is True


def test_what_the_prompt_says_ends_nothing(writer):
    """Nor what stands half in the prompt, half in the text."""
    (text,) = (writer("a class", max_new_tokens=6)["text"],)
    for stop in ("class", f"class{text[:2]}"):
        assert writer("a class", max_new_tokens=6, stop=stop)["text"] == text


@pytest.mark.parametrize(
    "settings",
    [{}, SAMPLED, {"stop": ["key key"]}, {"repetition_penalty": 1.3}],
    ids=["greedy", "sampling", "stop", "penalty"],
)
def test_a_stream_is_the_answers_text(writer, settings):
    for prompt in PROMPTS:
        chosen = {"max_new_tokens": 24, **settings}
        *parts, end = writer.stream(writer.encode(prompt, **chosen))
        assert "".join(parts) == writer(prompt, **chosen)["text"]
        assert (end, end.answer) == ("", writer(prompt, **chosen))
        assert len([part for part in parts if part]) > 2 or settings.get("stop")


def test_streams_and_batches_take_turns(writer):
    """Two streams that draw, and answers in between, from several threads."""
    chosen = {"max_new_tokens": 16, **SAMPLED, "temperature": 2.0}
    seeds = (3, 4)
    alone = [writer(PROMPTS[0], **{**chosen, "seed": seed})["text"] for seed in seeds]
    greedy = writer(PROMPTS[1], max_new_tokens=8)
    streams = [
        writer.stream(writer.encode(PROMPTS[0], **{**chosen, "seed": seed})) for seed in seeds
    ]
    texts, others = ["", ""], []
    worker = threading.Thread(
        target=lambda: others.extend(writer(PROMPTS[1], max_new_tokens=8) for _ in range(5))
    )
    worker.start()
    open_ones = {0, 1}
    while open_ones:
        for i in sorted(open_ones):
            part = next(streams[i], None)
            if part is None:
                open_ones.discard(i)
            else:
                texts[i] += part
                torch.rand(1)
    worker.join()
    assert texts == alone
    assert others == [greedy] * 5


def test_a_text_without_a_finished_word_takes_turns(writer, monkeypatch):
    """Between them others are answered; the text is the same."""
    chosen = {"max_new_tokens": 40, **SAMPLED}
    whole = writer(PROMPTS[0], **chosen)
    calls = [0]
    forward = writer.task.model.lm_loss.register_forward_pre_hook(
        lambda *_: calls.__setitem__(0, calls[0] + 1)
    )
    monkeypatch.setattr(Words, "put", lambda self, value: None)
    each, parts = [], []
    for part in writer.stream(writer.encode(PROMPTS[0], **chosen)):
        each.append(calls[0])
        parts.append(part)
        writer(PROMPTS[1], max_new_tokens=2, do_sample=True, seed=9)
        calls[0] = 0
    forward.remove()
    *turns, text, end = parts
    assert len(turns) >= 40 // TURN_TOKENS
    assert set(turns) == {""}
    assert max(each) <= TURN_TOKENS
    assert text == whole["text"]
    assert end.answer == whole


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 1}])
def test_a_text_that_is_not_wanted_is_interrupted(writer, settings):
    """After the token at which it is asked; nothing of it is left."""
    whole = writer("a class", max_new_tokens=6, **settings)
    pieces = writer.encode("a class", max_new_tokens=6, **settings).pieces
    asked: list[int] = []

    def interrupted():
        asked.append(1)
        return len(asked) == 3

    torch.manual_seed(7)
    before = torch.get_rng_state()
    with pytest.raises(Interrupted):
        writer.run(pieces, interrupted)
    assert len(asked) == 3
    assert torch.equal(torch.get_rng_state(), before)
    encoded = writer.encode("a class", max_new_tokens=6, **settings)
    assert writer.decode(encoded, writer.run(encoded.pieces, lambda: False)) == whole


def stream_threads():
    return [thread for thread in threading.enumerate() if thread.name == "xlnet-fast-stream"]


def test_who_stops_reading_ends_the_writing(writer):
    for leave in ("close", "forget"):
        calls: list[object] = []
        hook = writer.task.model.lm_loss.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        stream = writer.stream(writer.encode("a class", max_new_tokens=400))
        next(stream)
        if leave == "close":
            stream.close()
        del stream
        gc.collect()
        end = time.monotonic() + 20
        while stream_threads() and time.monotonic() < end:
            time.sleep(0.01)
        hook.remove()
        assert not stream_threads()
        assert len(calls) < 100
    assert writer("a class", max_new_tokens=3)["new_tokens"] == 3


def test_nothing_is_written_before_it_is_asked_for(writer):
    before = len(stream_threads())
    stream = writer.stream(writer.encode("a class", max_new_tokens=400))
    assert len(stream_threads()) == before
    stream.close()


def test_values_that_are_no_numbers():
    answers = predictor(folder_of("XLNetLMHeadModel"))
    with torch.no_grad():
        answers.task.model.lm_loss.bias.fill_(float("nan"))
    for settings in ({}, SAMPLED, {"num_beams": 2}):
        with pytest.raises(NotFinite):
            answers("a class", max_new_tokens=4, **settings)
    encoded = answers.encode("a class", max_new_tokens=4)
    with pytest.raises(NotFinite):
        list(answers.stream(encoded))
    with torch.no_grad():
        answers.task.model.lm_loss.bias.fill_(0)
    assert "".join(answers.stream(encoded)) == answers("a class", max_new_tokens=4)["text"]


def test_a_prompt_without_numbers_spoils_no_other():
    finite = AllFinite(2)
    scores = torch.zeros(4, 3)
    scores[3, 1] = float("nan")
    scores[0, 0] = float("-inf")  # what top_k leaves out
    assert torch.equal(finite(torch.zeros(4, 1), scores), scores) is False  # NaN is unequal
    finite(torch.zeros(4, 1), torch.zeros(4, 3))
    assert finite.values().isnan().tolist() == [False, True]


class Letters:
    """Token i is letter i."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i) for i in ids)


def test_what_may_end_a_text_is_kept_back():
    given = []
    stream = Words(Letters(), ["x y z"], given.append, AllFinite(1))
    for part in ("p", *"a x y w x y z"):
        stream.put(torch.tensor([ord(part)]))
    stream.finish("a x y w ")
    assert "".join(given) == "a x y w "
    assert "x y" not in given[0]
    criterion = Stops(Letters(), 1, ["b c"])
    rows = torch.tensor([[ord(c) for c in row] for row in ("pab cd", "b c  a")])
    assert criterion(rows, None).tolist() == [True, False]
    assert cut_at("one two three", ["three", "two"]) == "one "


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.5}, "temperature is of sampling, expected do_sample true"),
        ({"do_sample": True, "temperature": 0}, "temperature is 0.0, expected at least 0.001"),
        ({"seed": 1}, "seed is of sampling"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2, expected at most num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5, expected a whole number"),
        ({"seed": 10**4000}, "seed is a huge number, expected 0 to"),
        ({"stop": ["a", ""]}, "stop has an empty text"),
        ({"stop": [3]}, "stop is 3, expected a text"),
        ({"best_of": 2}, "generation has no parameter 'best_of'"),
    ],
)
def test_settings_that_are_refused(writer, settings, message):
    with pytest.raises(ArgumentError, match=message):
        writer("a class", **settings)


def test_only_one_text_is_streamed(writer):
    with pytest.raises(ArgumentError, match="num_beams and num_return_sequences of 1"):
        writer.stream(writer.encode("a class", num_beams=2))
