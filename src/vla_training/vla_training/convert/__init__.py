"""Recorded bags to data sets."""
