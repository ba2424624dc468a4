"""Data sets and shards: columns, labels, storage."""
