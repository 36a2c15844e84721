"""One folder per method, the same doors in each. A new folder is found by itself; nothing else is edited."""
