"""Faults of what is around the kernels: the builder, the qualifier, the command line, `check`."""

from __future__ import annotations

from mutant_fault import faults_of

RUN = "xlnet_fast/qualifier/run.py"

FAULTS = [
    *faults_of(
        "xlnet_fast/builder/recipe.py",
        "builder/test_recipe.py builder/test_build.py",
        (
            "builder: a header does not change the digest",
            "return [*sources(), *cuda_sources(), *headers(), *own]",
            "return [*sources(), *cuda_sources(), *own]",
        ),
        (
            "builder: the cache takes another Python's extension",
            'key = f"{version()}-{abi}-{sysconfig.get_platform()}-{digest()}"',
            'key = f"{version()}-{sysconfig.get_platform()}"',
        ),
        select="digest or cache or sources or flags or recipe",
    ),
    *faults_of(
        "xlnet_fast/builder/lock.py",
        "builder/test_recipe.py builder/test_build.py",
        (
            "builder: the lock shuts nobody out",
            "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
            "fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        ),
        select="lock or waiting or several",
    ),
    *faults_of(
        "xlnet_fast/builder/build.py",
        "builder/test_build.py builder/test_cuda.py",
        (
            "builder: an extension older than its sources is taken",
            "return any(file.stat().st_mtime > made for file in recipe.inputs())",
            "return False",
        ),
        (
            "builder: of several processes each builds",
            "found = _usable(place, cuda) if waited or not force else None",
            "found = None",
        ),
        select="needed or several or changed",
    ),
    *faults_of(
        "xlnet_fast/builder/compiler.py",
        "builder/test_recipe.py builder/test_build_failures.py",
        (
            "builder: compilers live on behind the time limit",
            "            self._end(list(running), running)",
            "            running.clear()",
        ),
        select="time_out or at_once",
    ),
    *faults_of(
        "xlnet_fast/builder/nvcc.py",
        "builder/test_cuda.py",
        select="gencode or architectures",
    ),
    *faults_of(
        "xlnet_fast/_extension.py",
        "test_extension.py",
        (
            "extension: one of another version is loaded",
            "    if built != __version__:",
            "    if not built:",
        ),
        select="version or told or user",
    ),
    *faults_of(
        "xlnet_fast/qualifier/checks.py",
        "qualifier/test_checks.py",
        (
            "qualifier: an error twice as large passes",
            "if not error <= bound:",
            "if not error <= 2 * bound:",
        ),
        (
            "qualifier: NaN passes",
            "if not error <= bound:",
            "if error > bound and math.isfinite(error):",
        ),
        (
            "qualifier: a touched guard band passes",
            "        if touched is not None:\n",
            "        if touched is not None and not results:\n",
        ),
        (
            "qualifier: other bits in a second run pass",
            '        _compare(results, first, list(results), "a second run")\n',
            "",
        ),
        (
            "qualifier: gradients are not repeated",
            '    _compare(runs[1], runs[0], list(before), "a second run in deterministic mode")\n',
            "",
        ),
        (
            "qualifier: gradients of the kernels alone are not held",
            "            found = yardstick.hold(known)\n",
            "            found = worst\n",
        ),
    ),
    *faults_of(
        RUN,
        "qualifier/test_qualifier_run.py cli/test_cli_qualify.py",
        (
            "qualifier: a crash leaves what passed before",
            "if row.backend == backend and row.status not in (FAILED, UNAVAILABLE):",
            "if row.backend == backend and row.status == NOT_RUN:",
        ),
        (
            "qualifier: verdicts of other software stay",
            "    if former.identity != record.identity:\n        return record\n",
            "",
        ),
        (
            "qualifier: a run that failed keeps its former verdict",
            "rows = tuple((rest | kept | new).values())",
            "rows = tuple((rest | new | kept).values())",
        ),
        (
            "qualifier: two qualify one device at once",
            "    with lock.held(path, math.inf, tell, _LOCK):\n        yield\n",
            "    yield\n",
        ),
    ),
    *faults_of(
        "xlnet_fast/qualifier/timing.py",
        "qualifier/test_timing.py",
        (
            "qualifier: the first in each round is the same",
            "shift = turn % len(names)",
            "shift = 0",
        ),
    ),
    *faults_of(
        "xlnet_fast/rounding.py",
        "test_rounding.py",
        (
            "rounding: a softmax's gradient moves by its own size",
            "minuend * self._noise(minuend) - probability * (row_sum * self._noise(row_sum))",
            "(minuend - probability * row_sum) * self._noise(minuend)",
        ),
    ),
    *faults_of(
        "xlnet_fast/check/run.py",
        "cli/test_cli_check.py",
        (
            "check: a failure ends with 0",
            'return 0 if "ok" in states and "FAILED" not in states else 1',
            'return 0 if "ok" in states else 1',
        ),
        select="check_fails",
    ),
    *faults_of(
        "xlnet_fast/check/trial.py",
        "cli/test_cli_check.py",
        (
            "check: the last batch counts, not the worst",
            "return max(errors), max(bounds)",
            "return errors[-1], bounds[-1]",
        ),
        (
            "check: what cancels is judged by its own size",
            "self.batches[key][batch] = error, bound + added",
            "self.batches[key][batch] = error, bound",
        ),
        (
            "check: rounding is asked of the best batch first",
            "batch = max(left, key=errors.__getitem__)",
            "batch = min(left, key=errors.__getitem__)",
        ),
        select="check_fails or worst_batch or missing or cancel",
    ),
    *faults_of(
        "xlnet_fast/cli/__init__.py",
        "cli/test_cli.py cli/test_cli_check.py",
        (
            "cli: bad input ends with 1",
            "BAD_INPUT = 2",
            "BAD_INPUT = 1",
        ),
        (
            "cli: check's exit code is lost",
            "raise typer.Exit(run_check(model))",
            "run_check(model)",
        ),
    ),
    *faults_of(
        "xlnet_fast/cli/__init__.py",
        "builder/test_build_failures.py",
        (
            "cli: a failed build ends with 0",
            "        raise typer.Exit(1) from None\n    how = (",
            "        raise typer.Exit(0) from None\n    how = (",
        ),
        select="no_compiler or no_sources",
    ),
    *faults_of(
        "xlnet_fast/cli/qualify.py",
        "cli/test_cli_qualify.py",
        (
            "cli: a backend that failed ends with 0",
            "raise typer.Exit(1 if outcome.bad else 0)",
            "raise typer.Exit(0)",
        ),
    ),
    *faults_of(
        "xlnet_fast/cli/config_file.py",
        "cli/test_cli_finetune.py cli/test_cli_pretrain.py",
        (
            "cli: an unknown option of a file is passed over",
            '            raise ArgumentError(f"{path} sets {key}, which is no option; they are: '
            '{options}")\n',
            "            continue\n",
        ),
        select="file or yaml",
    ),
]
