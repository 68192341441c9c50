"""The rooms of `benchmarks/` and their order, checked by reading the imports.

    cases -> providers -> harness -> {pages, gpu, micro} -> bench_<op> -> run -> reproduce, __main__

A module imports from its own room and those to its left; rooms in braces never from one another,
nor one `bench_<op>` from another. Imports are relative, and no module meets itself again.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest
from test_layers import files, imports

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PACKAGE = "benchmarks"
ROOMS = [
    {"cases"},
    {"providers"},
    {"harness"},
    {"pages", "gpu", "micro"},
    {"bench"},
    {"run"},
    {"reproduce", "__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
MODULES = files(FOLDER)


def room(name: str) -> str:
    """Of a module by its dotted name below the package."""
    first = name.split(".")[0]
    found = "bench" if first.startswith("bench_") else first
    if found not in RANK:
        raise LookupError(f"benchmarks.{name} is in no room: add it to ROOMS in test_rooms.py")
    return found


def targets(name: str, source: str, is_package: bool, modules: set[str]) -> list[str]:
    """The modules of the benchmarks that one imports, by their names below the package."""
    known = {f"{PACKAGE}.{other}".rstrip(".") for other in modules}
    found = imports(ast.parse(source), f"{PACKAGE}.{name}".rstrip("."), is_package, known)
    return [target.removeprefix(f"{PACKAGE}.") for target in found if target in known]


def problems(name: str, source: str, is_package: bool, modules: set[str]) -> list[str]:
    """What is wrong with the imports of a module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module)
        # Installed, the folder is xlnet_fast.benchmarks: the name `benchmarks` is gone there.
        found += [
            f"{name} imports {each}, which must be relative"
            for each in names
            if each.split(".")[0] == PACKAGE or each.startswith(f"xlnet_fast.{PACKAGE}")
        ]
    for target in targets(name, source, is_package, modules):
        if not name or target == PACKAGE:
            found.append(f"{name or PACKAGE} imports {target}: the package itself has no part")
            continue
        here, there = room(name), room(target)
        apart = here != there or here == "bench"
        if apart and RANK[there] >= RANK[here]:
            found.append(f"{name} imports {target}, which is not to its left")
    return found


def circle(graph: Mapping[str, list[str]]) -> list[str]:
    """Modules that import each other around, the first again at the end; none is empty."""
    done: set[str] = set()

    def walk(path: list[str]) -> list[str]:
        for target in graph[path[-1]]:
            if target in path:
                return [*path[path.index(target) :], target]
            if target not in done and (found := walk([*path, target])):
                return found
        done.add(path[-1])
        return []

    return next((found for name in graph if (found := walk([name]))), [])


def source(name: str) -> tuple[str, bool]:
    """A module's text, and whether it is a package."""
    path = MODULES[name]
    return path.read_text(encoding="utf-8"), path.name == "__init__.py"


@pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "__init__")
def test_imports_run_one_way(name):
    assert problems(name, *source(name), set(MODULES)) == []


def test_no_module_meets_itself_again():
    assert circle({name: targets(name, *source(name), set(MODULES)) for name in MODULES}) == []


SKETCH = {"", "cases", "cases.a", "harness", "harness.b", "pages", "pages.c", "gpu", "gpu.d"}
SKETCH |= {"bench_e", "bench_f", "run", "reproduce", "__main__"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bench_e", "def main():\n    from .run import main"),
        ("bench_e", "from .bench_f import load"),
        ("harness.b", "from ..bench_e import KERNEL"),
        ("cases.a", "from ..harness.b import Plan"),
        ("cases.a", "from .. import harness"),
        ("pages.c", "from ..gpu.d import Evidence"),
        ("gpu.d", "from ..reproduce import main"),
        ("run", "from benchmarks import harness"),
        ("run", "import xlnet_fast.benchmarks.harness"),
    ],
)
def test_the_rule_finds_what_breaks_it(name, text):
    assert len(set(problems(name, text, False, SKETCH))) >= 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("harness.b", "from ..cases.a import Geometry\nfrom . import b"),
        ("run", "from . import bench_e, bench_f\nfrom .pages.c import draw"),
        ("reproduce", "from .run import finish"),
        ("gpu.d", "import torch\nfrom xlnet_fast.errors import ArgumentError"),
    ],
)
def test_the_rule_allows_what_keeps_it(name, text):
    assert problems(name, text, False, SKETCH) == []


def test_a_circle_is_found():
    graph = {"a": ["b"], "b": ["c"], "c": ["b"], "d": []}
    assert circle(graph) == ["b", "c", "b"]
    assert circle(graph | {"c": ["d"]}) == []


def test_a_module_without_a_room_is_told():
    with pytest.raises(LookupError, match=r"benchmarks\.attic is in no room"):
        room("attic")
