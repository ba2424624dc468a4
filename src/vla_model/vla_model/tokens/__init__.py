"""Tokens of the one vocabulary: text, images, states and actions, and the prompts that are made of them."""
