"""Processes of a running system: node list, launch actions, supervisor, probe."""
