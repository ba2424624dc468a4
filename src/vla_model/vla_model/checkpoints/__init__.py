"""Checkpoint folders: files, names, memory plan."""
