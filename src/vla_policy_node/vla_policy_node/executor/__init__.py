"""The executor node: action chunks in, set-points to the controller out."""
