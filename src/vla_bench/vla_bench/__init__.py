"""Benchmarks of the running suite, fault injection and fuzzing of the executor. Not needed on a robot."""
