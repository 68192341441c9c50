"""Packages that a format needs and that are no dependency of ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from xlnet_fast.errors import XLNetFastError


def require(why: str, names: Sequence[str], install: str) -> None:
    """Before minutes of work: is all here?

    Args:
        why: what they are for, a clause. names: of their modules. install: how to get them.

    Raises:
        XLNetFastError: says what is missing, and how to install it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise XLNetFastError(f"{why}; {' and '.join(missing)} cannot be found: {install}")
