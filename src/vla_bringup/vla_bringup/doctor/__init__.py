"""The doctor: checks of machine, network, model and robot, each with a verdict and a remedy."""
