"""Which column holds what, and the rows of a JSON file; for training and for prediction."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xlnet_fast.errors import ArgumentError

# What a column of each role is usually called; the first that is there is taken.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "text": (
        "text",
        "sentence",
        "review",
        "content",
        "sentence1",
        "premise",
        "question1",
        "body",
        "prompt",
    ),
    "text_pair": ("text_pair", "sentence2", "hypothesis", "question2"),
    "label": ("label", "labels", "class", "category", "target", "sentiment"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "pos_tags", "labels"),
    "question": ("question", "sent2"),
    "context": ("context", "passage"),
    "answers": ("answers", "answer", "answer_text"),
    "answer_start": ("answer_start",),
    "id": ("id", "example_id", "qid"),
    "passage": ("context", "article", "passage", "startphrase", "sent1"),
    "stem": ("question", "sent2"),
    "choices": ("choices", "endings", "options"),
    "choice": ("label", "answer", "answerKey"),
}
_NUMBERED = re.compile(r"(?:ending|choice|option)_?(\d+)")
_SIGNS = (",", "\t", ";", "|")
_LIST_ROLES = ("label", "choices")
"""Those that may be a list of columns: NAME,NAME,..."""


def given_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Role to column name, of options ROLE=NAME.

    Raises:
        ArgumentError: a pair is no ROLE=NAME, or a role or a column comes twice.
    """
    parts = [pair.partition("=") for pair in pairs]
    roles: list[str] = []
    names: list[str] = []
    for role, _, name in parts:
        if not role or not name:
            raise ArgumentError(
                f"column must be ROLE=NAME, such as text=review, got {role or name!r}"
            )
        roles.append(role)
        names += filter(None, map(str.strip, name.split(","))) if role in _LIST_ROLES else [name]
    for what, given in (("role", roles), ("column", names)):
        if twice := next((word for word in given if given.count(word) > 1), None):
            raise ArgumentError(f"column names the {what} {twice!r} twice, expected it once")
    return {role: name for role, _, name in parts}


def check_header(header: Sequence[str], source: object) -> None:
    """Check the first line of a .csv or .tsv file.

    Raises:
        ArgumentError: a name is missing or comes twice, or another sign parts the columns.
    """
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise ArgumentError(f"the first line of {source} names the column {twice!r} twice")
    if not header or not all(name.strip() for name in header):
        raise ArgumentError(f"the first line of {source} must name the columns, got {list(header)}")
    other = next((sign for sign in _SIGNS if sign in header[0]), None)
    if len(header) == 1 and other is not None:
        raise ArgumentError(
            f"the first line of {source} names one column, {header[0]!r}: a .csv file is parted by "
            f"commas and a .tsv file by tabs, not by {other!r}"
        )


def match_columns(
    names: Sequence[str],
    source: str,
    required: Sequence[str],
    optional: Sequence[str],
    given: Mapping[str, str],
) -> dict[str, str]:
    """Role to column name, by what the user gave and by the usual names.

    Args:
        names: of the columns that there are. source: of the data, for messages.

    Raises:
        ArgumentError: a column that was named is not there, or none has a required role's usual
            name; says which columns there are.
    """
    there = ", ".join(names)
    found: dict[str, str] = {}
    for role in (*required, *optional):
        if role in given:
            if given[role] not in names:
                raise ArgumentError(
                    f"{source} has no column {given[role]!r} for {role}; it has: {there}"
                )
            found[role] = given[role]
            continue
        known = USUAL_NAMES.get(role, (role,))
        usual = [name for name in known if name not in found.values()]
        name = next((name for name in usual if name in names), None)
        if name is not None:
            found[role] = name
        elif role in required:
            raise ArgumentError(
                f"{source} has no column for {role}: none of {', '.join(known)} is "
                f"among its columns, which are: {there}; name it with --column {role}=NAME"
            )
    return found


def choice_columns(names: Sequence[str], source: str, given: str) -> list[str]:
    """Columns of which each holds one choice: those given as NAME,NAME,..., else ending0, ending1.

    None where one column has all choices, by its name or as a usual one.

    Raises:
        ArgumentError: one that was named is not there.
    """
    wanted = [name.strip() for name in given.split(",") if name.strip()]
    if len(wanted) < 2:
        if wanted or any(name in names for name in USUAL_NAMES["choices"]):
            return []
        matches = {name: _NUMBERED.fullmatch(name) for name in names}
        numbers = {name: int(match[1]) for name, match in matches.items() if match}
        return sorted(numbers, key=numbers.__getitem__)
    for name in wanted:
        if name not in names:
            raise ArgumentError(
                f"{source} has no column {name!r} for choices; it has: {', '.join(names)}"
            )
    return wanted


def rows_of_json(content: Any, source: object) -> list[Mapping[str, Any]]:
    """The rows of a JSON file's content: a list of objects, also under "data", or SQuAD's nesting.

    Raises:
        ArgumentError: it is something else.
    """
    if isinstance(content, Mapping) and isinstance(content.get("data"), list):
        content = content["data"]
    elif isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list) or not all(isinstance(row, Mapping) for row in content):
        raise ArgumentError(f"{source} must hold a list of objects, or such a list under 'data'")
    if content and "paragraphs" in content[0]:
        return list(_squad_rows(content))
    return content


def _squad_rows(articles: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of SQuAD's own nesting: articles, paragraphs, questions."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question.get("answers", [])
                yield {
                    "id": question["id"],
                    "question": question["question"],
                    "context": paragraph["context"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                }
