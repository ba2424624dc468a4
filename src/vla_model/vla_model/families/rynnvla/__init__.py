"""RynnVLA-002: a causal transformer that acts and predicts the next images, with a continuous action head."""
