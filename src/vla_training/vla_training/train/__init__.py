"""Trains the model: makes tokens, defines the objective, runs the loop, saves its state, exports a checkpoint."""
