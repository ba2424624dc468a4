"""MolmoAct: a causal transformer that answers with depth tokens, a visual trace, then actions."""
