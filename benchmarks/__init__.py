"""Budgets as measurements: one module per budget of docs/benchmarks.md, each with the bare thing measured in the same run."""
