"""MM-ACT: one masked network that writes actions, plans and images."""
