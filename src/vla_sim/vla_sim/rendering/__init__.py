"""Camera images of the simulated world."""
