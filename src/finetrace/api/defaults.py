"""What an audit does unless it is told otherwise."""

METHODS = ("kl", "diff_mining", "activation_difference_lens")
"""All read the same pass: how far predictions moved, which tokens, and what the mean change says."""
