"""One package for each published model: its weight names, its prompts and its policy."""
