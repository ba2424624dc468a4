"""Policies in other processes: clients of policy servers, mappings between their numbers and a robot, a server."""
