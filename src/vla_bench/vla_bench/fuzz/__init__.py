"""Fuzz tests of the executor: random chunks, late steps and every kind of hold, against all limits."""
