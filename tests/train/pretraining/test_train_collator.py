"""Batches of the permutation objective: padded, equal to the oracle's, and without a leak."""

from __future__ import annotations

import random
from typing import Any

import datasets
import numpy as np
import plm_oracle
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BatchEncoding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    XLNetConfig,
    XLNetLMHeadModel,
)

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.patching import accelerate
from xlnet_fast.text import SPECIAL_TOKENS
from xlnet_fast.train.pretraining.collator import PermutationCollator, collate
from xlnet_fast.train.pretraining.permutation import SpanSampling, draws_for_targets
from xlnet_fast.train.pretraining.streams import PermutationStreams, SequenceShape

CLS, SEP, PAD, WORD, PIECE = 3, 4, 5, 9, 30
"""Special ids; the first id of a piece that begins a word; of one that does not."""
SIZE = plm_oracle.VOCABULARY_SIZE


def tokenizer_of(pieces: list[str], **special: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=pieces[0]))
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(scope="module")
def tokenizer():
    text = [f"▁w{i}" if i < PIECE else f"p{i}" for i in range(WORD, SIZE)]
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return tokenizer_of([*SPECIAL_TOKENS, *text], **special)


def texts(lengths: list[int], seed: int = 0) -> list[dict[str, list[int]]]:
    """Random rows; <sep> <cls> end those of 4 tokens and more, <sep> parts those of 8 and more."""
    draw = random.Random(seed)
    rows = [[draw.randrange(WORD, SIZE) for _ in range(length)] for length in lengths]
    for row in rows:
        if len(row) > 3:
            row[-2:] = [SEP, CLS]
        if len(row) > 7:
            row[len(row) // 2] = SEP
    return [{"input_ids": row} for row in rows]


def collated(collator: PermutationCollator, examples: Any, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    return collator(examples)


def tiny_model(**options: Any) -> XLNetLMHeadModel:
    """Two layers of width 16; weights so large that every token that is seen makes a difference."""
    config = XLNetConfig(
        vocab_size=SIZE, d_model=16, n_layer=2, n_head=2, d_inner=24, dropout=0.0, **options
    )
    model = XLNetLMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def stream_items(bi_data: bool = False) -> list[dict[str, Any]]:
    """One step of four rows of 17 tokens, 9 of them in the first part."""
    draw = random.Random(0)
    corpus = plm_oracle.random_corpus(draw, 400, (2, 6), (2, 5))
    shape = SequenceShape(seq_len=17, reuse_len=9, perm_size=5, num_predict=7, bi_data=bi_data)
    data = PermutationStreams(corpus, plm_oracle.random_vocabulary(draw, 0.6), shape, 4)
    return data.__getitems__(range(8, 12))


def hidden_of(batch: dict[str, Any]) -> np.ndarray:
    """(B, L, L) True where token i must not see token j by the ranks."""
    rank_q, rank_k = batch["permutation_ranks"]
    return (rank_q[:, :, None] <= rank_k[:, None, :]).numpy()


def test_batches_are_those_of_the_oracle(tokenizer):
    notes = plm_oracle.Notes()
    for seed in range(60):
        draw = random.Random(seed)
        spans = SpanSampling(draw.randint(1, 6), 1, draw.randint(1, 5), draw.random() < 0.5)
        collator = PermutationCollator(
            tokenizer,
            num_predict=draw.choice([None, 1, 4, 50]),
            perm_size=draw.choice([None, 1, 3, 64]),
            spans=spans,
            pad_to_multiple_of=draw.choice([1, 1, 8]),
        )
        examples = texts([draw.randint(1, 24) for _ in range(draw.randint(1, 5))], seed)
        batch = collated(collator, examples, seed)
        torch.manual_seed(seed)
        numbers = np.random.default_rng(int(torch.randint(2**63 - 1, (1,))))
        ids = batch["input_ids"].tolist()
        length = len(ids[0])
        size = min(collator.perm_size or (length + 1) // 2, length)
        free = [[token >= WORD for token in row] for row in ids]
        goals = [_goal(collator, sum(row)) for row in free]
        count = draws_for_targets(length, max(goals))
        draws = numbers.random((len(ids), count + size)).tolist()
        for row, tokens in enumerate(ids):
            starts = [token < PIECE for token in tokens]
            found = plm_oracle.sample_targets(
                starts, free[row], goals[row], draws[row][:count], spans, notes
            )
            functional = [token in (SEP, CLS) for token in tokens]
            targets = [a and not b for a, b in zip(found, functional, strict=True)]
            order = plm_oracle.factorization_order(draws[row][count:], length)
            expected = plm_oracle.hidden_within(order, targets, functional)
            real = batch["attention_mask"][row].bool().numpy()
            assert (hidden_of(batch)[row] == np.array(expected))[:, real][real].all()
            positions = batch["target_positions"][row]
            assert positions[positions >= 0].tolist() == list(np.flatnonzero(targets))
    assert notes["topped up"] > 20
    assert notes["the span reaches the end"] > 20


def _goal(collator: PermutationCollator, free: int) -> int:
    if collator.num_predict is not None:
        return min(collator.num_predict, free)
    return min(free, max(1, round(free / collator.spans.mask_alpha)))


def test_rows_are_padded_on_the_left(tokenizer):
    examples = texts([7, 3, 5])
    batch = collated(PermutationCollator(tokenizer), examples)
    assert batch["input_ids"].shape == (3, 7)
    for row, example in enumerate(examples):
        ids = example["input_ids"]
        missing = 7 - len(ids)
        assert batch["input_ids"][row].tolist() == [PAD] * missing + ids
        assert batch["attention_mask"][row].tolist() == [0] * missing + [1] * len(ids)
        assert batch["token_type_ids"][row].tolist() == [3] * missing + [0] * len(ids)
    wide = collated(PermutationCollator(tokenizer, pad_to_multiple_of=8), examples)
    assert wide["input_ids"].shape == (3, 8)
    assert wide["input_ids"][:, 0].tolist() == [PAD] * 3


def test_columns_that_examples_may_have(tokenizer):
    collator = PermutationCollator(tokenizer)
    ids, segments = texts([6])[0]["input_ids"], [0, 0, 0, 1, 1, 2]
    plain = collated(collator, [ids])
    for example in (
        {"input_ids": ids, "other": 3},
        {"input_ids": np.array(ids)},
        {"input_ids": torch.tensor([ids])},
        BatchEncoding({"input_ids": ids}),
        {"input_ids": [PAD, PAD, *ids], "attention_mask": [0, 0, *([1] * 6)]},
    ):
        batch = collated(collator, [example])
        assert all(torch.equal(batch[name], plain[name]) for name in ("input_ids", "labels"))
    example = {"input_ids": [*ids, PAD], "token_type_ids": [*segments, 3],
               "attention_mask": torch.tensor([1] * 6 + [0])}  # fmt: skip
    assert collated(collator, [example])["token_type_ids"].tolist() == [segments]


@pytest.mark.parametrize("lengths", [[1], [2, 3], [13, 13], [9, 1, 15, 4]])
def test_targets_are_tokens_of_the_text(lengths, tokenizer):
    for seed in range(20):
        batch = collated(PermutationCollator(tokenizer), texts(lengths, seed), seed)
        positions, labels = batch["target_positions"], batch["labels"]
        taken = batch["input_ids"].gather(1, positions.clamp(min=0))
        assert torch.equal(labels, torch.where(positions < 0, -100, taken))
        assert (labels[positions >= 0] >= WORD).all()
        assert (positions >= 0).any(1).all()
        assert (positions >= 0).any(0).all()  # no column without a target
        assert labels.shape[1] <= max(1, round(max(lengths) / 6))


def test_texts_of_few_tokens_always_have_a_target(tokenizer):
    """If <sep> or <cls> took the only draw, the loss of a batch of one row would be NaN."""
    for seed in range(50):
        batch = collated(PermutationCollator(tokenizer), [[WORD, SEP, CLS]], seed)
        assert batch["labels"].tolist() == [[WORD]]


def test_the_number_of_targets(tokenizer):
    plain = [{"input_ids": [WORD + i % 4 for i in range(length)]} for length in (30, 4, 18)]
    for number, expected in ((None, [5, 1, 3]), (3, [3, 3, 3]), (20, [20, 4, 18])):
        batch = collated(PermutationCollator(tokenizer, num_predict=number), plain)
        assert (batch["target_positions"] >= 0).sum(1).tolist() == expected
        assert batch["labels"].shape == (3, max(expected))
    spans = SpanSampling(mask_alpha=4, mask_beta=2)
    batch = collated(PermutationCollator(tokenizer, spans=spans), plain)
    assert (batch["target_positions"] >= 0).sum(1).tolist() == [15, 2, 9]


def test_perm_size_is_the_length_of_a_block(tokenizer):
    """Within blocks of one token the order is that of the text."""
    collator = PermutationCollator(tokenizer, num_predict=12, perm_size=1)
    batch = collated(collator, [[WORD] * 12])
    hidden = np.triu(np.ones((12, 12), bool))
    assert (hidden_of(batch)[0] == hidden).all()
    size, length = 5, 13
    collator = PermutationCollator(tokenizer, num_predict=length, perm_size=size)
    for seed in range(5):
        order = collated(collator, [[WORD] * length], seed)["permutation_ranks"][1][0].tolist()
        assert [rank // size for rank in order] == [i // size for i in range(length)]
        assert [rank - size for rank in order[size : 2 * size]] == order[:size]
    default = collated(PermutationCollator(tokenizer, num_predict=length), [[WORD] * length])
    assert [rank // 7 for rank in default["permutation_ranks"][1][0].tolist()] == [0] * 7 + [1] * 6


def test_whole_words_are_predicted_whole(tokenizer):
    """All but the last span of a row end where a word does; no row is so short to be topped up."""
    draw = random.Random(3)
    ids = [[WORD + draw.randrange(31) for _ in range(400)] for _ in range(40)]
    cut = {}
    for whole_words in (False, True):
        spans = SpanSampling(whole_words=whole_words)
        collator = PermutationCollator(tokenizer, num_predict=30, spans=spans)
        batch = collated(collator, ids)
        cut[whole_words] = 0
        for tokens, positions in zip(ids, batch["target_positions"].tolist(), strict=True):
            ends = [p for p in positions[:-1] if p + 1 not in positions]
            begins = [p for p in positions if p - 1 not in positions]
            assert all(tokens[begin] < PIECE for begin in begins)
            cut[whole_words] += sum(tokens[end + 1] >= PIECE for end in ends)
    assert cut[True] == 0
    assert cut[False] > 40


def test_random_numbers_are_those_of_torch(tokenizer):
    collator, examples = PermutationCollator(tokenizer), texts([40, 33])
    first = collated(collator, examples, 5)
    again, other = collated(collator, examples, 5), collator(examples)
    for name in ("labels", "target_positions"):
        assert torch.equal(first[name], again[name])
    assert torch.equal(first["permutation_ranks"][0], again["permutation_ranks"][0])
    assert not torch.equal(first["permutation_ranks"][0], other["permutation_ranks"][0])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "at least one sequence"),
        ([[WORD], []], "none may be empty"),
        ([{"input_ids": [WORD], "attention_mask": [0]}], "none may be empty"),
        ([{"text": "a", "label": 0}], "has the columns text, label, expected input_ids: tokenize"),
        ([{}], "has the columns none, expected input_ids"),
        ([[WORD, SIZE]], "input_ids go from 9 to 40, expected 0 to 39: another tokenizer"),
        ([[WORD, -1]], "input_ids go from -1 to 9"),
        ([[SEP, CLS], [CLS]], "only <sep> and <cls>: there is nothing to predict"),
        ([{"input_ids": [9, 9], "token_type_ids": [0]}], "token_type_ids has 1 entries where"),
        ([{"input_ids": [9, 9], "attention_mask": [1]}], "attention_mask has 1 entries where"),
    ],
)
def test_examples_that_cannot_be_used_are_refused(examples, message, tokenizer):
    with pytest.raises(ArgumentError, match=message):
        PermutationCollator(tokenizer)(examples)


@pytest.mark.parametrize("name", ["num_predict", "perm_size", "pad_to_multiple_of"])
def test_sizes_below_one_are_refused(name, tokenizer):
    with pytest.raises(ArgumentError, match=f"{name} is 0, expected at least 1"):
        PermutationCollator(tokenizer, **{name: 0})


def test_other_tokenizers_are_refused():
    with pytest.raises(ArgumentError, match="the tokenizer has no <eod>: expected an XLNet"):
        PermutationCollator(tokenizer_of(["<unk>", "<cls>", "<sep>", "<pad>"]))
    with pytest.raises(ArgumentError, match="no padding token, expected <pad>"):
        PermutationCollator(tokenizer_of(list(SPECIAL_TOKENS)))


def batches(tokenizer, dense: bool = False) -> dict[str, dict[str, Any]]:
    """Of both kinds of streams, and of the collator with odd and mixed lengths."""
    collator = PermutationCollator(tokenizer, num_predict=5, perm_size=4, dense=dense)
    return {
        "streams": collate(stream_items(), dense=dense),
        "bi_data": collate(stream_items(bi_data=True), dense=dense),
        "odd": collated(collator, texts([13, 13])),
        "mixed": collated(collator, texts([11, 4, 7])),
    }


@pytest.mark.parametrize("kind", ["streams", "bi_data", "odd", "mixed"])
def test_nothing_that_is_known_of_a_target_is_the_target(kind, tokenizer):
    batch = batches(tokenizer)[kind]
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool().tolist()
    rank_k = batch["permutation_ranks"][1].tolist()
    for row, hidden in enumerate(hidden_of(batch).tolist()):
        known = plm_oracle.reachable(hidden, real[row])
        targets = [p for p in batch["target_positions"][row].tolist() if p >= 0]
        assert targets
        for target in targets:
            assert real[row][target]
            assert all(real[row][other] for other in known[target])
            later = {other for other in targets if rank_k[row][other] >= rank_k[row][target]}
            assert target in later
            assert not known[target] & later


@pytest.mark.parametrize("dense", [False, True], ids=["compact", "dense"])
@pytest.mark.parametrize("kind", ["streams", "bi_data", "odd", "mixed"])
def test_a_target_changes_only_what_comes_after_it(kind, dense, tokenizer):
    model = accelerate(tiny_model())
    compact, batch = batches(tokenizer)[kind], batches(tokenizer, dense)[kind]
    rank_q, rank_k = (rank[0] for rank in compact["permutation_ranks"])
    positions = compact["target_positions"][0]
    positions = positions[positions >= 0]
    after = 0
    with torch.no_grad():
        logits = model(**batch).logits[0, : len(positions)]
        for target in positions.tolist():
            ids = batch["input_ids"].clone()
            ids[0, target] = WORD + (ids[0, target] + 1) % (SIZE - WORD)
            changed = model(**{**batch, "input_ids": ids}).logits[0, : len(positions)]
            sees = rank_q[positions] > rank_k[target]
            assert torch.equal((changed != logits).any(1), sees)
            after += int(sees.sum())
    assert 0 < after < len(positions) ** 2


def test_memory_knows_nothing_of_the_second_part():
    """It would tell the next step's first part, which is the text that A is."""
    model = accelerate(tiny_model(mem_len=32, reuse_len=9))
    batch = collate(stream_items())
    with torch.no_grad():
        mems = model(**batch).mems
        batch["input_ids"][:, 9:] = WORD
        changed = model(**batch).mems
    assert mems[0].shape[0] == 9
    assert all(map(torch.equal, mems, changed))


@pytest.mark.parametrize("kind", ["streams", "bi_data", "odd", "mixed"])
def test_dense_and_compact_batches_give_the_same_loss(kind, tokenizer):
    compact, dense = batches(tokenizer)[kind], batches(tokenizer, dense=True)[kind]
    plain = tiny_model()
    with torch.no_grad():
        eager = plain(**dense).loss
        model = accelerate(plain)
        losses = [model(**batch).loss for batch in (compact, dense)]
    assert torch.isfinite(eager)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert losses[0].item() == pytest.approx(eager.item(), rel=1e-5)


def test_dense_batches_have_nothing_compact(tokenizer):
    compact, dense = batches(tokenizer), batches(tokenizer, dense=True)
    for kind, batch in dense.items():
        assert not {"permutation_ranks", "target_positions"} & set(batch)
        assert batch["perm_mask"].dtype == batch["target_mapping"].dtype == torch.float32
        assert (batch["perm_mask"].bool().numpy() == hidden_of(compact[kind])).all()
        rows = batch["target_mapping"].sum(2)
        assert torch.equal(rows > 0, compact[kind]["target_positions"] >= 0)
        assert torch.equal(batch["labels"], compact[kind]["labels"])


def test_items_of_streams_are_stacked():
    items = stream_items()
    batch = collate(items)
    assert set(batch) == {
        "input_ids", "token_type_ids", "labels", "permutation_ranks", "target_positions",
    }  # fmt: skip
    for row, item in enumerate(items):
        for name in ("input_ids", "token_type_ids", "labels", "target_positions"):
            assert batch[name][row].tolist() == item[name].tolist()
        for rank, mine in zip(batch["permutation_ranks"], item["permutation_ranks"], strict=True):
            assert rank[row].tolist() == mine.tolist()


@pytest.mark.parametrize("dense", [False, True], ids=["compact", "dense"])
def test_the_trainer_of_hugging_face_takes_it(dense, tokenizer, tmp_path):
    """Odd and mixed lengths, columns that the model does not know, and the same loss twice."""
    rows = texts([3 + i % 12 for i in range(16)])
    dataset = datasets.Dataset.from_list([{**row, "text": "a"} for row in rows])
    losses = []
    for run in ("first", "second"):
        arguments = TrainingArguments(
            str(tmp_path / run), max_steps=3, per_device_train_batch_size=4, report_to=[],
            logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True, seed=3,
        )  # fmt: skip
        model = tiny_model()
        trainer = Trainer(
            model=model if dense else accelerate(model),
            args=arguments,
            train_dataset=dataset,
            data_collator=PermutationCollator(tokenizer, dense=dense),
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 3
    assert np.isfinite(losses[0]).all()
    assert losses[0] == losses[1]
