"""The bundled tiny world: its texts, base model, organisms, and the truth about each: see `bundled`."""
