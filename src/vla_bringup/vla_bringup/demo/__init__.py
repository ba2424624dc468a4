"""The demo: episodes on the simulated robot, their record, pictures and report."""
