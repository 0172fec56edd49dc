"""A model in the formats of other programs: GGUF, a plain folder."""
