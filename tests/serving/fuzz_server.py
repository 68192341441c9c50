"""Thousands of odd requests, made from the description of a real server: `make fuzz`.

    python tests/serving/fuzz_server.py [--examples 250] [--seconds 300] [--seed 1]

schemathesis sends them; a model of every task is served. Exits with 1 where one met a 5xx that is
no refusal, another answer than the description promises is reported by `--checks all`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from real_server import models, served


def main() -> int:
    """Run as a command; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=250, help="of each operation, at most")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checks", default="no_fault")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = models(Path(temporary) / "models")
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        with served(str(folder), "--log-level", "error") as url:
            return subprocess.run(
                [
                    *(str(Path(sys.executable).with_name("schemathesis")), "run"),
                    *(f"{url}/openapi.json", "--checks", arguments.checks),
                    *("-n", str(arguments.examples), "--seed", str(arguments.seed)),
                    *("--max-time", str(arguments.seconds), "--request-timeout", "40"),
                    *("--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
                    *("--no-shrink", "--suppress-health-check", "all", "--warnings", "off"),
                    "--no-color",
                ],
                env={
                    **os.environ,
                    "SCHEMATHESIS_HOOKS": "fuzz_hooks",
                    "PYTHONPATH": str(Path(__file__).parent),
                    "FUZZ_MODELS": ",".join(names),
                },
                check=False,
            ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
