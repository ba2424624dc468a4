"""Benchmarks of models and engines, and parity with the published references."""
