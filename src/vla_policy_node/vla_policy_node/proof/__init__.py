"""Streams of chunks that try to break the limits, and the command that counts whether one did."""
