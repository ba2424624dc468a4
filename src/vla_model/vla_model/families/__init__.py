"""The published models that the suite runs: a folder each, of prompt, weight names and policy."""
