"""Trains the depth tokenizer."""
