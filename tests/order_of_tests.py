"""Which tests come first on a GPU."""

from __future__ import annotations

import pytest


def compiling_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """The first test of each name that a marker ``compiles`` has, then all others, as they came.

    Several processes that take a test each then compile different kernels, not the same one.
    """
    seen: set[str] = set()
    first, others = [], []
    for item in items:
        marker = item.get_closest_marker("compiles")
        if marker is None or marker.args[0] in seen:
            others.append(item)
        else:
            seen.add(marker.args[0])
            first.append(item)
    return first + others
