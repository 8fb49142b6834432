"""Benchmarks that compare alternatives side by side in one run."""
