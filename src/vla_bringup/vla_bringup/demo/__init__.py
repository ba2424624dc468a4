"""The demo: episodes on the simulated robot, with bag, videos, figure and report."""
