"""Configuration: groups in YAML, typed and checked all at once."""
