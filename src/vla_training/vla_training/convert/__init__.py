"""Converts recorded bags to data sets."""
