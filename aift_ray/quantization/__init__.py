"""Fewer bits for a model: merging, writing, and what it costs and saves."""
