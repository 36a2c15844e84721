"""Paired activations on disk, a buffer that shuffles them, and the examples on which something is largest."""
