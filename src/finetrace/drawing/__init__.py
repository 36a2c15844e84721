"""Page figures to plotly, and hostile text to visible text. Nothing heavy is imported until something is drawn."""
