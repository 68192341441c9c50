"""Metrics: labels by scikit-learn, numbers by scipy, entities by exact span and type, answers as
SQuAD counts them.

All values lie between 0 and 1, but for errors of numbers and correlations.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
)

from xlnet_fast.train.finetune.chunks import entities

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def classification_metrics(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 as the mean over labels and weighted by their rows.

    gold, predicted: label ids, [n]. The mean is over the labels that are in one of both.
    """
    metrics = {"accuracy": float(accuracy_score(gold, predicted))}
    present = np.union1d(gold, predicted)
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            gold, predicted, labels=present, average=average, zero_division=0
        )
        metrics[f"precision_{average}"] = float(precision)
        metrics[f"recall_{average}"] = float(recall)
        metrics[f"f1_{average}"] = float(f1)
    return metrics


def multi_label_metrics(
    gold: np.ndarray, scores: np.ndarray, chosen: np.ndarray
) -> dict[str, float]:
    """Of any number of labels a row: average precision, and what the chosen ones come to.

    Macro: the mean over the labels that are in one of both (of average precision: in ``gold``).
    Micro: over all pairs of a row and a label alike. ``subset_accuracy``: rows all of whose labels
    are right. 0 where there is nothing to count.

    gold: 1 where a label applies, else 0; scores: any; chosen: True or 1, all [n, labels].
    """
    gold, chosen = gold.astype(np.int64), chosen.astype(np.int64)
    applies, named = gold.any(0), (gold | chosen).any(0)
    single = [_average_precision(gold[:, i], scores[:, i]) for i in np.flatnonzero(applies)]
    metrics = {
        "average_precision_micro": _average_precision(gold.ravel(), scores.ravel())
        if applies.any()
        else 0.0,
        "average_precision_macro": float(np.mean(single)) if single else 0.0,
        "subset_accuracy": float((gold == chosen).all(1).mean()),
    }
    columns = precision_recall_fscore_support(gold, chosen, average=None, zero_division=0)
    metrics["f1_macro"] = float(columns[2][named].mean()) if named.any() else 0.0
    precision, recall, f1, _ = precision_recall_fscore_support(
        gold, chosen, average="micro", zero_division=0
    )
    micro = {"precision_micro": precision, "recall_micro": recall, "f1_micro": f1}
    return {**metrics, **{name: float(value) for name, value in micro.items()}}


def _average_precision(gold: np.ndarray, scores: np.ndarray) -> float:
    return min(1.0, float(average_precision_score(gold, scores)))  # its sum may round above 1


def regression_metrics(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Mean squared and absolute error, and Pearson's and Spearman's correlation (scipy).

    A correlation is 0 where all numbers of one side are the same: it has no value there.

    gold, predicted: [n].
    """
    gold, predicted = gold.astype(np.float64), predicted.astype(np.float64)
    differ = bool(np.ptp(gold)) and bool(np.ptp(predicted))
    return {
        "mse": float(np.square(predicted - gold).mean()),
        "mae": float(np.abs(predicted - gold).mean()),
        "pearson": float(pearsonr(gold, predicted).statistic) if differ else 0.0,
        "spearman": float(spearmanr(gold, predicted).statistic) if differ else 0.0,
    }


def per_label(
    gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of rows of each label.

    gold, predicted: label ids, [n]; or 1 where a label applies, else 0, [n, labels].
    """
    columns = precision_recall_fscore_support(
        gold, predicted, labels=range(len(labels)), average=None, zero_division=0
    )
    rows = zip(labels, *columns, strict=True)
    return {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, p, r, f, n in rows
    }


def confusion(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Rows by their label (first axis) and by the prediction (second), [labels, labels]."""
    return np.asarray(confusion_matrix(gold, predicted, labels=range(len(labels))))


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of entities of each type, and of all under ``""``.

    An entity counts if type, first and last token agree.
    """
    counts: dict[str, Counter[str]] = {"": Counter()}
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        true, guess = entities(gold_tags), entities(predicted_tags)
        for name, group in (("gold", true), ("predicted", guess), ("right", true & guess)):
            for kind, _, _ in group:
                counts[""][name] += 1
                counts.setdefault(kind, Counter())[name] += 1
    return {kind: _scores(counts[kind]) for kind in sorted(counts)}


def _scores(count: Counter[str]) -> dict[str, float]:
    precision = count["right"] / count["predicted"] if count["predicted"] else 0.0
    recall = count["right"] / count["gold"] if count["gold"] else 0.0
    both = precision + recall
    f1 = 2 * precision * recall / both if both else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": count["gold"]}


def normalized_answer(text: str) -> str:
    """Lower case, without punctuation, articles and double spaces (SQuAD's evaluation script)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(predicted: str, gold: str) -> float:
    """1 if both answers are the same after normalisation, else 0."""
    return float(normalized_answer(predicted) == normalized_answer(gold))


def answer_f1(predicted: str, gold: str) -> float:
    """F1 of the words that both answers share; without words in one, 1 if both have none."""
    words, gold_words = normalized_answer(predicted).split(), normalized_answer(gold).split()
    if not words or not gold_words:
        return float(words == gold_words)
    shared = sum((Counter(words) & Counter(gold_words)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def answer_metrics(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1, the best over each question's gold answers; no gold answer counts as "".

    Where some questions have an answer and some have none, also of the two kinds alone.
    """
    scores: dict[str, list[tuple[float, float]]] = {"": [], "_has_answer": [], "_no_answer": []}
    for guess, answers in zip(predicted, gold, strict=True):
        # As SQuAD's script: answers that are nothing but articles and punctuation do not count.
        real = [answer for answer in answers if normalized_answer(answer)] or [""]
        score = (
            max(exact_match(guess, answer) for answer in real),
            max(answer_f1(guess, answer) for answer in real),
        )
        scores[""].append(score)
        scores["_has_answer" if real != [""] else "_no_answer"].append(score)
    both_kinds = bool(scores["_has_answer"]) and bool(scores["_no_answer"])
    metrics: dict[str, Any] = {}
    for suffix, values in scores.items():
        if values and (suffix == "" or both_kinds):
            metrics[f"exact_match{suffix}"] = float(np.mean([exact for exact, _ in values]))
            metrics[f"f1{suffix}"] = float(np.mean([f1 for _, f1 in values]))
    return metrics
