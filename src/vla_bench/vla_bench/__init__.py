"""Benchmarks of the running suite, fault injection and fuzz tests of the executor. Not needed on a robot."""
