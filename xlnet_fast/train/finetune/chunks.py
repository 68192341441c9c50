"""Entities of a sentence from the chunk tags of its words. Only the standard library here."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TAG = re.compile(r"O|[BIESLU]-.+")
Entity = tuple[str, int, int]


def has_entities(labels: Sequence[str]) -> bool:
    """Whether the labels are chunk tags: O, and B-, I-, E-, S-, L- or U- with a type."""
    return all(_TAG.fullmatch(label) for label in labels) and any(label != "O" for label in labels)


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one sequence as (type, first token, last token).

    IOB1, IOB2, BIOES and BILOU alike, by the rules of CoNLL's conlleval: an entity begins at B, S
    and U, and at any other tag where none of its type is open; it ends before the next beginning,
    O or other type, and at E, L, S and U.
    """
    found: set[Entity] = set()
    kind, begin = "", -1
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, this = tag.partition("-")
        if begin >= 0 and (prefix in "OBSU" or this != kind):
            found.add((kind, begin, i - 1))
            begin = -1
        if prefix == "O":
            continue
        if begin < 0:
            kind, begin = this, i
        if prefix in "ELSU":
            found.add((kind, begin, i))
            begin = -1
    return found
