"""The commands of ./vla train, by the kind of work."""
