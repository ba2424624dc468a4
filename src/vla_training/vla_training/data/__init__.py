"""Defines the columns of data sets, makes plan labels, and stores tokens in shards."""
