"""Collects data from the simulator: expert episodes and static-scene samples."""
