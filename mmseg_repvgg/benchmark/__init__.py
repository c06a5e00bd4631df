"""The paper's speed tables, measured: ``tools/benchmark.py``."""
