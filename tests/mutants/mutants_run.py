"""Tries deliberate faults, one at a time, and tells which tests find them: `make mutants`.

    python tests/mutants/mutants_run.py [--only PATTERN] [--list] [--jobs 2] [--out FILE [--resume]]

Each fault is put into a copy of the tree and its tests run until the first fails, in a process
forked from this one, which has imported torch before. At the end the tests that found a fault run
without any and must pass, or what they found counts for nothing. The exit code is 1 where a fault
survives that should be found, an equivalent one is found, or an entry fits the sources no more.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mutant_extension
from mutant_fault import Fault, Stale, changed

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (
    "-x", "-q", "-n", "0", "--benchmark-disable", "-p", "no:cacheprovider", "--timeout", "0",
)  # fmt: skip
LIMIT_S = 300.0
FOUND, SURVIVED, STALE, RED = "found", "SURVIVED", "STALE", "RED WITHOUT THE FAULT"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLNET_FAST_NO_CUDA": "1",  # for what is built within the tests
}
HEAVY = ("torch", "transformers.models.xlnet.modeling_xlnet", "hypothesis", "pytest")
"""What most tests import, and nobody changes."""
UNPREPARED = 70
"""Exit code of a process in which no test was begun, as where C++ does not compile."""


@dataclass(frozen=True)
class Result:
    """What became of one fault. ``by``: the test that found it, or why the entry is stale."""

    name: str
    outcome: str
    by: str
    seconds: float


# ---- the tree that is changed ----


class Tree:
    """A copy of the repository's files, as they lie there, and of its compiled extension."""

    def __init__(self, source: Path, folder: Path):
        self.folder = folder
        extensions = [path.relative_to(source) for path in source.glob("xlnet_fast/_C*.so")]
        for name in [*_files(source), *extensions]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, folder / name)
        self._extensions = {folder / name: (folder / name).read_bytes() for name in extensions}
        emulation = source / "build" / "cuda-emulation"  # of objects under the hash of their source
        if emulation.is_dir():
            (folder / "build").mkdir()
            (folder / "build" / "cuda-emulation").symlink_to(emulation)
        self._unchanged = ("", "")  # the file that is changed, and what it was
        # In steps of a second, which is how finely Python tells an old .pyc.
        self._dates = itertools.count(int(time.time()) + 1)

    def change(self, fault: Fault) -> None:
        """Put a fault into its file.

        Raises:
            Stale: it does not fit. OSError: there is no such file.
        """
        text = (self.folder / fault.file).read_text(encoding="utf-8")
        changed_text = changed(fault, text)
        self._unchanged = fault.file, text
        self._write(fault.file, changed_text)

    def restore(self) -> None:
        """Undo the last change, and what was compiled with it."""
        name, text = self._unchanged
        self._write(name, text)
        if name.startswith("csrc/"):
            self.restore_extension()

    def restore_extension(self) -> None:
        for file, content in self._extensions.items():
            file.unlink()  # it may be mapped into a process
            file.write_bytes(content)

    def _write(self, name: str, text: str) -> None:
        """With a date that no older content of the file had."""
        file = self.folder / name
        file.write_text(text, encoding="utf-8")
        date = next(self._dates)
        os.utime(file, (date, date))


def _files(root: Path) -> list[Path]:
    """What git tracks or does not ignore; everything where there is no git."""
    if not (root / ".git").exists():
        return [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    names = (Path(name) for name in done.stdout.split("\0") if name)
    return [name for name in names if (root / name).is_file()]


# ---- one run of tests, in a process of its own ----


class Run:
    """Tests running in the tree.

    Args:
        arguments: of pytest. only: ids of the tests that are run of those; () means all.
        prepare: does there what has to be done before.
        interpreted: with Triton's interpreter.
    """

    def __init__(
        self,
        tree: Tree,
        arguments: Sequence[str],
        only: Sequence[str] = (),
        prepare: Callable[[], None] = lambda: None,
        interpreted: bool = False,
    ):
        self.log = tree.folder.with_suffix(".log")
        self.report = tree.folder.with_suffix(".json")
        self.report.write_text(json.dumps({"only": [*only]}))
        self.began_s = time.monotonic()
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            try:
                self._enter(tree.folder)
                prepare()
                if interpreted:  # decided when Triton is imported, which here it was already
                    os.environ["TRITON_INTERPRET"] = "1"
                    words = [sys.executable, "-c", _ANEW, str(self.report), *arguments]
                    os.execv(sys.executable, words)
                run_pytest(self.report, arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(UNPREPARED)
            os._exit(0)

    def _enter(self, folder: Path) -> None:
        """Become a process that could have been started in the tree."""
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        os.environ.update(ENVIRONMENT, PYTHONPATH=str(folder))
        sys.path.insert(0, str(folder))

    def finished(self, limit_s: float) -> tuple[int, list[str]] | None:
        """(pytest's exit code, what failed), or None while it runs."""
        done, status = os.waitpid(self.process, os.WNOHANG)
        if not done and time.monotonic() - self.began_s < limit_s:
            return None
        self.end(is_over=bool(done))
        if not done:
            return 1, [f"the limit of {limit_s:g} s"]
        code, report = os.waitstatus_to_exitcode(status), json.loads(self.report.read_text())
        if "code" in report:
            return report["code"], report["failed"]
        return 1 if code < 0 else code, [f"its end with {code}: {_last_line(self.log)}"]

    def end(self, is_over: bool = False) -> None:
        """Kill it, unless it is over, and what its tests started in any case."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)
        if not is_over:
            os.kill(self.process, signal.SIGKILL)  # where it leads no group yet
            os.waitpid(self.process, 0)


_ANEW = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import mutants_run
mutants_run.run_pytest(mutants_run.Path(sys.argv[1]), sys.argv[2:])
"""


def run_pytest(report: Path, arguments: Sequence[str]) -> None:
    """Run tests and leave pytest's exit code and the tests that failed in a file.

    report: holds which tests are wanted, as :class:`Run` wrote it.
    """
    import pytest

    sys.argv = ["pytest"]
    watcher = _Watcher(json.loads(report.read_text())["only"])
    code = int(pytest.main([*arguments], plugins=[watcher]))
    report.write_text(json.dumps({"code": code, "failed": watcher.failed}))
    sys.stdout.flush()


class _Watcher:
    """A plugin of pytest that remembers what failed, a file that cannot be imported included."""

    def __init__(self, only: Sequence[str]) -> None:
        self.only, self.failed = only, []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.only:
            items[:] = [item for item in items if item.nodeid in self.only]

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._note(report)

    def pytest_collectreport(self, report: Any) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


def _start(fault: Fault, tree: Tree, cache: Path) -> Run:
    """Put the fault into the tree and start its tests."""

    def prepare() -> None:
        if fault.file.startswith("csrc/"):
            mutant_extension.build(cache, (tree.folder / fault.file).resolve(), fault.objects)

    tree.change(fault)
    select = ["-k", fault.select] if fault.select else []
    return Run(tree, [*OPTIONS, *select, *fault.tests], (), prepare, fault.interpreted)


def _judged(fault: Fault, finished: tuple[int, list[str]], seconds: float) -> Result:
    code, failed = finished
    if code in (1, 2, 3) and failed:
        return Result(fault.name, FOUND, failed[0], seconds)
    if code == 0:
        return Result(fault.name, SURVIVED, "", seconds)
    why = failed[0] if failed else f"pytest ended with {code}: no such tests?"
    return Result(fault.name, STALE, why, seconds)


# ---- all of them ----


def try_all(
    faults: Sequence[Fault], trees: Sequence[Tree], cache: Path, limit_s: float
) -> Iterator[Result]:
    """A result as soon as a fault has one, in as many trees at a time as there are."""
    waiting, free = list(faults), list(trees)
    running: list[tuple[Fault, Tree, Run]] = []
    try:
        while waiting or running:
            while waiting and free:
                fault, tree = waiting.pop(0), free.pop()
                try:
                    running.append((fault, tree, _start(fault, tree, cache)))
                except (Stale, OSError) as error:
                    free.append(tree)
                    yield Result(fault.name, STALE, str(error), 0.0)
            for fault, tree, run in list(running):
                finished = run.finished(limit_s)
                if finished is not None:
                    running.remove((fault, tree, run))
                    tree.restore()
                    free.append(tree)
                    yield _judged(fault, finished, round(time.monotonic() - run.began_s, 1))
            time.sleep(0.05)
    finally:
        for _, _, run in running:
            run.end()


def red_without_a_fault(tests: set[str], tree: Tree, interpreted: bool) -> list[str]:
    """Which of these tests fail in the tree as it is."""
    if not tests:
        return []
    options = [option for option in OPTIONS if option != "-x"]
    files = sorted({test.partition("::")[0] for test in tests})
    run = Run(tree, [*options, *files], sorted(tests), interpreted=interpreted)
    while (finished := run.finished(3600.0)) is None:
        time.sleep(0.1)
    return finished[1]


def is_as_expected(fault: Fault, result: Result) -> bool:
    return result.outcome == (SURVIVED if fault.equivalent else FOUND)


def shown(fault: Fault, result: Result) -> str:
    """A line about a result."""
    words = {FOUND: f"found by {result.by}", SURVIVED: fault.equivalent or "by every test of it"}
    said = words.get(result.outcome, result.by)
    expected = "" if is_as_expected(fault, result) else " <--"
    return f"{result.seconds:6.1f} s  {result.outcome:9} {fault.name}: {said}{expected}"


def main(
    arguments: Sequence[str] | None = None,
    faults: Sequence[Fault] | None = None,
    root: Path = ROOT,
    heavy: Sequence[str] = HEAVY,
) -> int:
    """The command; ``faults`` of the tree at ``root`` stand for those of the tables in its test."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    if faults is None:
        from mutants_table import FAULTS

        faults = FAULTS
    faults = [f for f in faults if not options.only or fnmatch.fnmatch(f.name, options.only)]
    if options.list:
        for fault in faults:
            print(f"{fault.name}  [{fault.file}]{' equivalent' if fault.equivalent else ''}")
        return 0
    known = _read(options.out) if options.resume else {}
    for module in heavy:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees = [Tree(root, Path(scratch) / f"tree{number}") for number in range(options.jobs)]
        cache = root / "build" / "mutants"
        rest = [fault for fault in faults if fault.name not in known]
        if any(fault.file.startswith("csrc/") for fault in rest):
            _build_unchanged(trees[0], cache)
        by_name = {fault.name: fault for fault in faults}
        with contextlib.closing(try_all(rest, trees, cache, options.limit)) as tried:
            for number, result in enumerate(tried, 1):
                known[result.name] = result
                print(f"{number}/{len(rest)} {shown(by_name[result.name], result)}", flush=True)
                _append(options.out, result)
        results = [known[fault.name] for fault in faults if fault.name in known]
        results = _proved(by_name, results, trees[0])
    return _summary(faults, results)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Try deliberate faults against the tests.")
    parser.add_argument("--only", metavar="PATTERN", help="names to try, as 'masks: *'")
    parser.add_argument("--list", action="store_true", help="name the faults and try none")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="so many at a time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results as JSON, one a line")
    parser.add_argument("--resume", action="store_true", help="pass by what FILE has already")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, help="seconds for one fault; then it counts found"
    )
    options = parser.parse_args(arguments)
    if options.resume and options.out is None:
        parser.error("--resume needs --out FILE")
    if options.out is not None and not options.resume:
        options.out.unlink(missing_ok=True)
    return options


def _read(file: Path) -> dict[str, Result]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {result.name: result for result in (Result(**json.loads(line)) for line in lines)}


def _append(file: Path | None, result: Result) -> None:
    if file is not None:
        with file.open("a") as out:
            out.write(json.dumps(asdict(result)) + "\n")


def _build_unchanged(tree: Tree, cache: Path) -> None:
    """Compile what the faults in C++ leave as it is; the tests get the checkout's extension."""
    print("compiling the extension without a fault", flush=True)
    run = Run(tree, ["--version"], prepare=lambda: mutant_extension.build(cache))
    while (finished := run.finished(3600.0)) is None:
        time.sleep(0.1)
    if finished[0] != 0:
        raise SystemExit(f"the extension cannot be built: {run.log.read_text()}")
    tree.restore_extension()


def _proved(faults: Mapping[str, Fault], results: Sequence[Result], tree: Tree) -> list[Result]:
    """Results whose tests pass without a fault; others are marked."""
    red: list[str] = []
    for interpreted in (False, True):
        found = [r for r in results if r.outcome == FOUND and _is_test(r.by, tree)]
        tests = {r.by for r in found if faults[r.name].interpreted == interpreted}
        red += red_without_a_fault(tests, tree, interpreted)
    return [replace(r, outcome=RED) if r.by in red else r for r in results]


def _is_test(found_by: str, tree: Tree) -> bool:
    """Whether a test, or its file, found a fault, and not a time limit or a crash."""
    return (tree.folder / found_by.partition("::")[0]).is_file()


def _summary(faults: Sequence[Fault], results: Sequence[Result]) -> int:
    by_name = {result.name: result for result in results}
    wrong = [f for f in faults if not is_as_expected(f, by_name[f.name])]
    for fault in wrong:
        print(f"<-- {shown(fault, by_name[fault.name])}")
    counts = dict.fromkeys((FOUND, SURVIVED, STALE, RED), 0)
    for result in results:
        counts[result.outcome] += 1
    equivalent = sum(bool(fault.equivalent) for fault in faults)
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    seconds = sum(result.seconds for result in results)
    print(
        f"{len(faults)} faults, {equivalent} of them equivalent: {told}; {seconds:.0f} s of tests"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
