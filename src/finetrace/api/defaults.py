"""What an audit does unless it is told otherwise."""

METHODS = ("kl", "diff_mining", "activation_difference_lens", "weight_spectrum")
"""The first three read the same pass: how far predictions moved, which tokens, and what the mean change says. The last
reads the weights alone, at a few hundredths of their cost."""
