"""Replay of recorded bags through a model, offline and live."""
