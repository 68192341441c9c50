"""Runs one of the benchmarks' commands: python -m benchmarks NAME [options].

Without a name it lists them. `bench_<op>`, or `<op>`, is `run` with that benchmark alone, unless it
has a command line of its own.
"""

from __future__ import annotations

import ast
import importlib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent
UNKNOWN = 2


def commands() -> dict[str, Path]:
    """Every command's file by its name; those of `micro` are called micro.NAME."""
    found = {}
    for path in sorted(_ROOT.rglob("*.py")):
        folder = path.parent.name
        is_bench = path.parent == _ROOT and path.name.startswith("bench_")
        if is_bench or "\ndef main(" in path.read_text(encoding="utf-8"):
            found[f"micro.{path.stem}" if folder == "micro" else path.stem] = path
    del found["__main__"]
    return found


def _summary(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def _run(path: Path, arguments: Sequence[str]) -> int:
    parts = path.relative_to(_ROOT).with_suffix("").parts
    module = ".".join([__package__ or _ROOT.name, *parts])
    if path.name.startswith("bench_"):
        found = importlib.import_module(module)
        if hasattr(found, "main"):  # it is of no op
            return found.main(arguments)
        from .run import main as run_main

        return run_main(arguments, only=(found.KERNEL,))
    sys.argv = [str(path), *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 2 for a name that there is not."""
    given = sys.argv[1:] if arguments is None else arguments
    name, *rest = given or [""]
    known = commands()
    if name not in known and f"bench_{name}" in known:
        name = f"bench_{name}"
    if name in known:
        return _run(known[name], rest)
    if name in ("", "-h", "--help"):
        print("python -m benchmarks NAME [options]; NAME --help tells the options of:\n")
        width = max(map(len, known))
        for each, path in known.items():
            print(f"  {each:{width}}  {_summary(path)}")
        return 0
    print(f"error: no benchmark is called {name!r}; there are {', '.join(known)}", file=sys.stderr)
    return UNKNOWN


if __name__ == "__main__":
    raise SystemExit(main())
