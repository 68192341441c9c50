"""The trainer of fine-tuning: losses over global batches, learning rates by layer, rows."""

from __future__ import annotations

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from tiny_finetuning import ROWS, checkpoint
from transformers import XLNetForSequenceClassification

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import FinetuneOptions
from xlnet_fast.train.finetune.layerwise import parameter_groups, rate_factor
from xlnet_fast.train.finetune.model import adopt_labels, load_model, run_config, run_tokenizer
from xlnet_fast.train.finetune.run import _TASKS
from xlnet_fast.train.finetune.trainer import FinetuneTrainer, _EpochSampler, _FilledRows
from xlnet_fast.train.shared.trainer import training_arguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(folder, tmp_path):
    """A trainer of toy rows, all of whose training arguments may be changed."""

    def make(task_name, rows, changes=None, **arguments):
        options = FinetuneOptions(
            task=task_name, model=str(folder), train="t", output=tmp_path, max_length=48, stride=8
        )
        options = dataclasses.replace(options, **(changes or {}))
        tokenizer = run_tokenizer(options)
        task = _TASKS[task_name](options, tokenizer)
        split = task.split("train", "train.jsonl", datasets.Dataset.from_list(rows))
        task.fit_labels(split)
        split.features = task.encode(split)
        config = run_config(options, tokenizer)
        torch.manual_seed(0)
        model = load_model(options, config, task, adopt_labels(config, task))
        settings = {"remove_unused_columns": False, "label_names": ["labels"], "save_steps": None}
        trainer = FinetuneTrainer(
            task,
            options,
            args=training_arguments(
                tmp_path, precision="fp32", **{**settings, "logging_steps": 1, **arguments}
            ),
            model=model,
            train_dataset=split.features,
            eval_dataset=split.features,
        )
        trainer.compute_metrics = lambda found: task.metrics(
            split, found.predictions, found.label_ids
        )
        return trainer

    return make


def gradients_of_each_step(trainer) -> list[dict[str, torch.Tensor]]:
    """What the optimizer is given in each step."""
    seen: list[dict[str, torch.Tensor]] = []
    trainer.create_optimizer().register_step_pre_hook(
        lambda *_: seen.append(
            {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        )
    )
    trainer.train()
    return seen


@pytest.mark.parametrize("task", sorted(ROWS))
def test_accumulated_batches_give_the_gradients_of_one(make, task):
    """7 rows: one full step of 4, and one of 3, of which the second batch has a single row."""
    rows = ROWS[task](7)
    if task == "token-classification":  # lengths differ, so batches have unlike numbers of labels
        for i, row in enumerate(rows):
            row["tokens"], row["tags"] = row["tokens"][: 3 + i], row["tags"][: 3 + i]
    same = {"num_train_epochs": 1, "learning_rate": 1e-3, "max_grad_norm": 0.0, "logging_steps": 1}
    one = make(task, rows, per_device_train_batch_size=4, **same)
    two = make(task, rows, per_device_train_batch_size=2, gradient_accumulation_steps=2, **same)
    expected, found = gradients_of_each_step(one), gradients_of_each_step(two)
    assert len(expected) == len(found) == 2
    for before, after in zip(expected, found, strict=True):
        assert before.keys() == after.keys()
        for name, gradient in before.items():
            torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_loss_of_an_evaluation_does_not_depend_on_its_batches(make):
    rows = [{**row, "text": row["text"] * (1 + i)} for i, row in enumerate(
        ROWS["text-classification"](7)
    )]  # fmt: skip
    found = [
        make("text-classification", rows, per_device_eval_batch_size=n).evaluate()["eval_loss"]
        for n in (1, 3, 7)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_no_memory_is_kept_and_no_tensor_of_it_returned(make):
    """HF's config would have an evaluation return every layer's hidden states."""
    trainer = make("text-classification", ROWS["text-classification"](4))
    seen = []
    trainer.model.register_forward_hook(lambda module, given, outputs: seen.append(outputs.mems))
    trainer.predict(trainer.eval_dataset)
    assert seen == [None]


# --- learning rates ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("transformer.word_embedding.weight", 0.125),
        ("transformer.layer.0.rel_attn.q", 0.25),
        ("transformer.layer.1.ff.layer_1.weight", 0.5),
        ("transformer.layer.2.rel_attn.seg_embed", 1.0),
        ("logits_proj.weight", 1.0),
        ("sequence_summary.summary.bias", 1.0),
    ],
)
def test_the_rate_halves_from_layer_to_layer(name, factor):
    assert rate_factor(name, 3, 0.5) == factor
    assert rate_factor(f"module.{name}", 3, 0.5) == factor
    assert rate_factor(name, 3, 1.0) == 1.0


def test_every_parameter_has_one_rate_and_one_decay(folder):
    model = XLNetForSequenceClassification.from_pretrained(folder)
    model.transformer.mask_emb.requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 2, 1e-3, 0.01, 0.5)
    assert groups[0]["lr"] == 1e-3
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values()) - {"transformer.mask_emb"}
    assert sum(len(group["params"]) for group in groups) == len(found)
    assert found["transformer.word_embedding.weight"] == (0.25e-3, 0.01)
    assert found["transformer.layer.0.rel_attn.q"] == (0.5e-3, 0.01)
    assert found["transformer.layer.1.rel_attn.q"] == (1e-3, 0.01)
    # The original's list, searched for in the names: the attention's biases, not seg_embed.
    for name in ("r_w_bias", "r_r_bias", "r_s_bias", "layer_norm.weight", "layer_norm.bias"):
        assert found[f"transformer.layer.0.rel_attn.{name}"] == (0.5e-3, 0.0)
    assert found["transformer.layer.0.rel_attn.seg_embed"] == (0.5e-3, 0.01)
    assert found["transformer.layer.0.ff.layer_1.bias"] == (0.5e-3, 0.0)
    assert found["logits_proj.bias"] == (1e-3, 0.0)


def test_all_rates_follow_the_schedule(make):
    trainer = make(
        "text-classification",
        ROWS["text-classification"](8),
        {"layerwise_decay": 0.5},
        per_device_train_batch_size=2,
        max_steps=4,
        learning_rate=1e-2,
    )
    trainer.train()
    rates = {round(group["initial_lr"], 6) for group in trainer.optimizer.param_groups}
    assert rates == {0.01, 0.005, 0.0025}
    assert all(group["lr"] == 0 for group in trainer.optimizer.param_groups)
    logged = [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e]
    assert logged[0] == 0.01


# --- rows ----------------------------------------------------------------------------------------


def test_each_epoch_has_an_order_of_its_own_and_fill_ups_come_last():
    sampler = _EpochSampler(10, 2, seed=3)
    rows = _FilledRows(datasets.Dataset.from_dict({"i": list(range(10))}), sampler)
    first = list(sampler)
    assert len(rows) == len(sampler) == 12
    assert sorted(first[:10]) == list(range(10))
    assert first[10:] == [10, 11]
    rows.set_epoch(1)
    assert list(sampler) != first
    rows.set_epoch(0)
    assert list(sampler) == first
    found = rows.__getitems__([3, 10, 11])
    assert [(row["i"], row["filled_up"]) for row in found] == [(3, False), (0, True), (1, True)]


def test_fill_ups_have_no_labels(make):
    trainer = make("token-classification", ROWS["token-classification"](3))
    rows = _FilledRows(trainer.train_dataset, _EpochSampler(3, 1, 0))
    batch = trainer.data_collator(rows.__getitems__([2, 3]))
    assert (batch["labels"][0] >= 0).any()
    assert (batch["labels"][1] < 0).all()


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "regression"}, "task must be one of text-classification, .* got 'regression'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16"),
        ({"schedule": "steps"}, "schedule must be one of linear"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"warmup": -1}, "warmup is -1, expected at least 0"),
        ({"warmup": 1.5}, "warmup is 1.5, expected whole steps or a share below 1"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"epochs": 0}, "epochs is 0, expected more than 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0, expected more than 0"),
        ({"layerwise_decay": 1.1}, "layerwise_decay is 1.1, expected 0 to 1"),
        ({"layerwise_decay": 0.0}, "layerwise_decay is 0.0, expected more than 0"),
        ({"dropout": 1.0}, "dropout is 1.0, expected 0 to 0.9"),
        ({"eval_share": 1.0}, "eval_share is 1.0, expected 0 to 0.9"),
        ({"task": "question-answering", "stride": 300}, "stride is 300, expected at most half"),
        ({"resume": True, "overwrite": True}, "resume goes on .* overwrite deletes"),
        ({"column": ("text",)}, "column must be ROLE=NAME"),
        ({"column": ("=a",)}, "column must be ROLE=NAME"),
        ({"column": ("label=good,bad, good",)}, "column names the column 'good' twice"),
        ({"column": ("choices=a,a",)}, "column names the column 'a' twice"),
        ({"column": ("text=a", "text_pair=a")}, "column names the column 'a' twice"),
        ({"column": ("text=a", "text=b")}, "column names the role 'text' twice"),
        ({"problem_type": "single-label", "threshold": 0.4}, "single-label has no use for it"),
        ({"problem_type": "regression", "threshold": 0.4}, "regression has no use for it"),
        ({"task": "token-classification", "threshold": 0.4}, "of multi-label rows; token-class"),
        ({"task": "multiple-choice", "threshold": 0.4}, "multiple-choice has no use for it"),
        ({"stride": 64}, "stride is of question-answering; text-classification ignores it"),
        ({"n_best": 5}, "n_best is of question-answering"),
        ({"max_answer_length": 9}, "max_answer_length is of question-answering"),
        ({"task": "multiple-choice", "null_threshold": 1.0}, "multiple-choice ignores it"),
        ({"task": "question-answering", "threshold": 0.4}, "question-answering has no use for it"),
    ],
)
def test_options_that_cannot_be_used(changes, words, tmp_path):
    options = FinetuneOptions(task="text-classification", model="m", train="t", output=tmp_path)
    options.check()
    with pytest.raises(ArgumentError, match=words):
        dataclasses.replace(options, **changes).check()


@pytest.mark.parametrize(
    "changes",
    [
        {"column": ("text=a,a", "label=rude,threat,")},  # the text's column has a comma in its name
        {"problem_type": "multi-label", "threshold": 0.4},
        {"threshold": 0.4},  # the rows say later whether it is read
        {"task": "multiple-choice", "threshold": 0.5},
        {"task": "question-answering", "stride": 64, "null_threshold": 1.0},
    ],
)
def test_options_that_can_be_used(changes, tmp_path):
    given = {"task": "text-classification", "model": "m", "train": "t", "output": tmp_path}
    FinetuneOptions(**{**given, **changes}).check()


def test_toy_data_are_what_they_say():
    """The tests' own yardstick: answers are where their starts say."""
    for row in ROWS["question-answering"](20):
        start, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        assert row["context"][start : start + len(text)] == text
    assert np.mean([row["label"] for row in ROWS["multiple-choice"](20)]) == 0.5
