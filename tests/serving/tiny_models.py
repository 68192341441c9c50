"""A folder of tiny models, one of every task: ``python tiny_models.py FOLDER``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "serve"), str(TESTS)]

from small_service import classifier  # noqa: E402
from tiny_finetuning import checkpoint  # noqa: E402
from transformers import (  # noqa: E402
    XLNetForMultipleChoice,
    XLNetForQuestionAnsweringSimple,
    XLNetForSequenceClassification,
    XLNetForTokenClassification,
    XLNetModel,
)


def main(folder: Path) -> None:
    """Make them: reviews, entities, questions, choices, vectors and writer."""
    checkpoint(folder / "writer", initializer_range=0.4)
    heads = {
        "reviews": XLNetForSequenceClassification,
        "entities": XLNetForTokenClassification,
        "questions": XLNetForQuestionAnsweringSimple,
        "choices": XLNetForMultipleChoice,
        "vectors": XLNetModel,
    }
    tags = {"id2label": dict(enumerate(["B-PER", "I-PER", "B-LOC", "B-<b>"]))}
    for name, head in heads.items():
        shutil.copytree(folder / "writer", folder / name)  # with the tokenizer
        classifier(folder / name, architecture=head, **(tags if name == "entities" else {}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
