"""MM-ACT: one masked-token transformer over text, images, states and actions."""
