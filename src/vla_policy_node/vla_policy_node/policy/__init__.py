"""The policy node: observations in, action chunks and other outputs of the model out."""
