"""Each file of examples/ runs as a user would run it, where the packages it needs are there."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "tiny_model.py")


@pytest.mark.parametrize("name", FILES)
def test_it_runs(name, monkeypatch, tmp_path):
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    for package in re.findall(r"^(?:from|import) (\w+)", source, flags=re.MULTILINE):
        if package != "tiny_model" and importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: `make examples` installs it")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_make_targets_run_all_of_them():
    makefile = (EXAMPLES.parent / "Makefile").read_text(encoding="utf-8")
    (named,) = re.findall(r"for example in ([\w ]+);", makefile)
    by_themselves = re.findall(r"bin/python examples/(\w+)\.py", makefile)
    assert sorted(f"{name}.py" for name in [*named.split(), *by_themselves]) == FILES
