"""Faults of the benchmarks: what they time, what they call a speed-up, what they check before."""

from __future__ import annotations

from mutant_fault import faults_of

TIMING = "benchmarks/harness/timing.py"
RUNNER = "benchmarks/harness/runner.py"
RECORD = "benchmarks/harness/record.py"
CHECK = "benchmarks/harness/check.py"
TABLE = "benchmarks/pages/table.py"

FAULTS = [
    *faults_of(
        TIMING,
        "benchmarks/test_harness.py",
        (
            "benchmarks: a speed-up is the ratio of medians",
            "return statistics.median(b / o for b, o in pairs)",
            "return statistics.median(base.samples_us) / statistics.median(other.samples_us)",
        ),
        (
            "benchmarks: a speed-up is the mean of the rounds",
            "return statistics.median(b / o for b, o in pairs)",
            "return statistics.mean(b / o for b, o in pairs)",
        ),
        (
            "benchmarks: the first in each round is the same",
            "turn = i_round % max(len(names), 1)",
            "turn = 0",
        ),
        (
            "benchmarks: ratios of other rounds",
            "if len(base.samples_us) != len(other.samples_us) or not base.samples_us:",
            "if not base.samples_us:",
        ),
        (
            "benchmarks: the budget ends the rounds before the fewest",
            "if i_round >= plan.min_rounds and clock() - start > plan.budget_s:",
            "if i_round >= 1 and clock() - start > plan.budget_s:",
        ),
        (
            "benchmarks: a function that failed keeps its samples",
            "                results[name] = Measurement(failure=describe(error))\n",
            "                results[name].failure = describe(error)\n",
        ),
    ),
    *faults_of(
        RUNNER,
        "benchmarks/test_runner.py",
        (
            "benchmarks: what is red is timed",
            "            outcome.work = None\n            outcome.status, outcome.reason = "
            '"red", verdict.message\n',
            '            outcome.status, outcome.reason = "red", verdict.message\n',
        ),
        (
            "benchmarks: a wrong result is passed",
            "        if not verdict.ok:\n",
            "        if not verdict.ok and verdict.error > 1:\n",
        ),
        (
            "benchmarks: how far a floor is, upside down",
            "row.time_over_floor = paired_ratio(own, floor)",
            "row.time_over_floor = paired_ratio(floor, own)",
        ),
        (
            "benchmarks: bandwidth in other units",
            "row.bandwidth_gb_s = candidate.bytes_moved / row.p50_us * 1e-3",
            "row.bandwidth_gb_s = candidate.bytes_moved / row.p50_us * 1e-6",
        ),
    ),
    *faults_of(
        CHECK,
        "benchmarks/test_runner.py",
        (
            "benchmarks: the check on a device is twice as wide",
            "return bool(finite & ~overflows & (error <= FACTOR * (error_of_eager + band)))",
            "return bool(finite & ~overflows & (error <= 2 * FACTOR * (error_of_eager + band)))",
        ),
        (
            "benchmarks: the first tensor alone is checked",
            "        if _within_on_device(a.detach(), h.detach(), e.detach()):\n"
            "            continue\n",
            "        if _within_on_device(a.detach(), h.detach(), e.detach()):\n"
            "            break\n",
        ),
    ),
    *faults_of(
        RECORD,
        "benchmarks/test_record.py",
        (
            "benchmarks: a row that is red has a speed-up",
            'if self.status != "ok" and any(ratio is not None for ratio in ratios):',
            'if self.status == "failed" and any(ratio is not None for ratio in ratios):',
        ),
    ),
    *faults_of(
        TABLE,
        "benchmarks/test_pages.py",
        (
            "benchmarks: a loss reads as a gain",
            'return f"{ratio:.2f}x" if ratio >= 1 else f"{ratio:.2f}x slower"',
            'return f"{max(ratio, 1 / ratio):.2f}x"',
        ),
    ),
]
