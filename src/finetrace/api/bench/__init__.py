"""The ground-truth benchmark: do the methods find what was planted, and nothing where nothing was?"""
