"""Demonstrations to a trained model: collect, convert, annotate, tokenize, train, evaluate, export."""
