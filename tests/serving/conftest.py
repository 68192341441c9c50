"""One real server for all of these tests, with a tiny model of every task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_server import models, served


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the models."""
    return models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def url(folder: Path) -> Iterator[str]:
    """Of the server, which asks for no tokens."""
    with served(str(folder)) as address:
        yield address
