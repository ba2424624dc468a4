"""Training: tokenized data, objective, loop, run state, export."""
