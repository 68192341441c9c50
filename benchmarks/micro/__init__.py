"""Micro benchmarks of single calls, run by `pytest benchmarks/` with pytest-benchmark."""
