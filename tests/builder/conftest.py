"""Trees to build in, and compilers that are shell scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from extension_tree import Tree


@pytest.fixture
def checkout(tmp_path):
    return Tree(tmp_path / "checkout", installed=False)


@pytest.fixture
def installed(tmp_path):
    return Tree(tmp_path / "site", installed=True)


@pytest.fixture
def script(tmp_path):
    """Writes an executable shell script and gives its path."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def counting(script, tmp_path):
    """(a compiler that notes its sources, a function that gives and forgets the notes)."""
    notes = tmp_path / "notes"
    text = f'for word; do case $word in *.cpp) echo "${{word##*/}}" >> {notes};; esac; done\n'
    path = script("counting", text + 'exec c++ "$@"')

    def compiled() -> list[str]:
        lines = sorted(notes.read_text().split()) if notes.exists() else []
        notes.unlink(missing_ok=True)
        return lines

    return path, compiled


@pytest.fixture
def sleeper(script, tmp_path):
    """(a compiler that sleeps, as its child does; the file with the ids of both)."""
    file = tmp_path / "pids"
    return script("sleeper", f"sleep 100 & echo $$ $! >> {file}; echo asleep; wait"), file
