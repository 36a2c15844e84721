"""Cards, results, pages, the shelf and errors: the ground floor. Imports no torch."""
